// The page: asks for the key where there is one, listens, and hands each part to what draws it.

import { byId, count } from "./dom.js";
import { events, hasKey, headers, keep } from "./told.js";
import { drawSwarm } from "./table.js";
import { showCoverage } from "./coverage.js";
import { showAudits, showCounts, showCredit, showFlows, showJobs, showJoin } from "./parts.js";
import { offerModels, startChat } from "./chat.js";

const AGAIN_MS = 1000;
const AGAIN_MOST_MS = 8000;

const facts = {};

const shows = {
  swarm(told) {
    drawSwarm(told);
    showCoverage(told);
    showFlows(told);
    offerModels(told.models);
    const there = told.peers.filter((one) => one.road !== "unreachable").length;
    byId("peers").textContent = count(there);
    byId("models").textContent = count(told.models.length);
  },
  counts(told) {
    showCounts(told);
    byId("answers").textContent = count(told.answers);
    byId("rate").textContent = count(told.tokens_s.at(-1) ?? 0);
  },
  jobs: showJobs,
  credit: showCredit,
  join: showJoin,
  bans: () => showAudits(facts.trust, facts.bans),
  trust: () => showAudits(facts.trust, facts.bans),
};

function live(state, words) {
  const place = byId("live");
  place.dataset.state = state;
  place.textContent = words;
}

function ask(wrong) {
  byId("board").hidden = true;
  byId("key").hidden = false;
  byId("wrong").textContent = wrong ? "That key is not known here." : "";
  live("waiting", "a key is needed");
  byId("secret").focus();
}

// One connection to its end. Returns whether it told anything; null: it wants a key.
async function listen() {
  const response = await fetch("/dashboard/events", { headers: headers(), cache: "no-store" });
  if (response.status === 401) return null;
  if (!response.ok) throw new Error(`status ${response.status}`);
  let told = false;
  for await (const text of events(response)) {
    const { part, facts: found } = JSON.parse(text);
    if (!(part in shows)) continue;
    facts[part] = found;
    if (!told) {
      byId("key").hidden = true;
      byId("board").hidden = false;
      live("live", "live");
      told = true;
    }
    shows[part](found);
  }
  return told;
}

async function keepListening() {
  let wait = AGAIN_MS;
  while (true) {
    try {
      const told = await listen();
      if (told === null) return ask(byId("secret").value !== "");
      if (told) wait = AGAIN_MS;
    } catch (error) {
      if (!(error instanceof TypeError) && !String(error.message).startsWith("status")) throw error;
    }
    live("lost", "not connected; trying again");
    await new Promise((done) => setTimeout(done, wait));
    wait = Math.min(2 * wait, AGAIN_MOST_MS);
  }
}

byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  keep(byId("secret").value);
  live("waiting", "connecting");
  keepListening();
});
startChat();
if (document.body.dataset.keyed === "yes" && !hasKey()) ask(false);
else keepListening();
