// What the server tells, event by event: by fetch, so that the key goes in a header.

let key = sessionStorage.getItem("key") ?? "";

export function keep(given) {
  key = given;
  if (given) sessionStorage.setItem("key", given);
  else sessionStorage.removeItem("key");
}

export const hasKey = () => key !== "";

export function headers(more = {}) {
  return key ? { ...more, authorization: `Bearer ${key}` } : more;
}

// Each event's data, as text, until the answer ends.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  while (true) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const whole = held.split("\n\n");
    held = whole.pop();
    for (const one of whole) if (one.startsWith("data: ")) yield one.slice(6);
  }
}
