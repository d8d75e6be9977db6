// A conversation with a model of the swarm, over the API's own /v1.

import { byId, make } from "./dom.js";
import { events, headers } from "./told.js";

const messages = [];
let asking = null; // the AbortController of the answer on its way
let offered = "";

export async function offerModels(models) {
  const names = JSON.stringify(models.map((one) => one.name));
  if (names === offered) return;
  offered = names;
  const response = await fetch("/v1/models", { headers: headers() });
  if (!response.ok) return;
  const { data } = await response.json();
  const select = byId("model");
  const before = select.value;
  select.replaceChildren(...data.map((one) => make("option", { value: one.id }, one.id)));
  if (data.some((one) => one.id === before)) select.value = before;
}

function say(role, text) {
  const place = make("p", { class: "line", "data-role": role }, text);
  byId("said").append(place);
  byId("said").scrollTop = byId("said").scrollHeight;
  return place;
}

async function request(path, body, signal) {
  return fetch(path, {
    method: "POST",
    headers: headers({ "content-type": "application/json" }),
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
}

// A model without a chat template continues the text instead.
async function open(model, signal) {
  const response = await request("/v1/chat/completions", { model, messages, max_tokens: 512 }, signal);
  if (response.status !== 400) return response;
  const { error } = await response.json();
  if (error.param !== "messages") throw new Error(error.message);
  const prompt = messages.at(-1).content;
  return request("/v1/completions", { model, prompt, max_tokens: 200 }, signal);
}

async function answer(model, place, signal) {
  const began = performance.now();
  const response = await open(model, signal);
  if (!response.ok) throw new Error((await response.json()).error.message);
  let [text, usage, remarks] = ["", null, null];
  for await (const told of events(response)) {
    if (told === "[DONE]") break;
    const chunk = JSON.parse(told);
    if (chunk.error) throw new Error(chunk.error.message);
    const choice = chunk.choices[0];
    text += choice?.delta?.content ?? choice?.text ?? "";
    place.textContent = text;
    byId("said").scrollTop = byId("said").scrollHeight;
    [usage, remarks] = [chunk.usage ?? usage, chunk.potluck ?? remarks];
  }
  const seconds = (performance.now() - began) / 1000;
  if (usage) {
    const lost = remarks?.recoveries ? `, hops replaced: ${remarks.recoveries}` : "";
    place.append(make("small", {}, ` ${usage.completion_tokens} tokens, ` +
      `${(usage.completion_tokens / seconds).toFixed(1)} a second${lost}`));
  }
  return text;
}

export function startChat() {
  const [form, words] = [byId("ask"), byId("words")];
  const button = form.querySelector("button");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (asking) return asking.abort();
    const asked = words.value.trim();
    if (!asked || !byId("model").value) return;
    words.value = "";
    messages.push({ role: "user", content: asked });
    say("user", asked);
    const place = say("assistant", "");
    asking = new AbortController();
    button.textContent = "Stop";
    try {
      const text = await answer(byId("model").value, place, asking.signal);
      messages.push({ role: "assistant", content: text });
    } catch (error) {
      messages.pop();
      place.append(make("small", { class: "warm" },
        error.name === "AbortError" ? " stopped" : ` ${error.message}`));
    }
    asking = null;
    button.textContent = "Send";
  });
  words.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!asking) form.requestSubmit();
    }
  });
}
