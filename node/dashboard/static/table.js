// The swarm as a table seen from above: we sit in the middle, each peer is a plate, and the rim of
// a plate is filled where the peer serves. An answer goes round it, hop by hop, and comes home.

import { byId, draw, set, short } from "./dom.js";
import { hueOf } from "./coverage.js";

const svg = byId("table");
const roads = draw("g", { class: "roads" });
const flows = draw("g", { class: "flows" });
const plates = draw("g", { class: "plates" });
const mine = draw("g", { class: "mine" }, draw("circle", { r: 9 }), draw("text", { y: 26 }, "here"));
svg.append(roads, flows, plates, mine);

const known = new Map(); // peer -> {plate, road}
const going = new Map(); // number of an answer -> path
let last = null;
let chosen = null;

// Peers that serve the same blocks sit together, in the order of the blocks.
function seats(peers, width, height) {
  const order = [...peers].sort((one, other) => {
    const [a, b] = [one.spans[0], other.spans[0]];
    return a.model.localeCompare(b.model) || a.start - b.start || a.stop - b.stop ||
      one.peer.localeCompare(other.peer);
  });
  const [across, down] = [width / 2 - 46, height / 2 - 44];
  return new Map(order.map((one, place) => {
    const angle = -Math.PI / 2 + (2 * Math.PI * (place + 0.5)) / order.length;
    return [one.peer, [width / 2 + across * Math.cos(angle), height / 2 + down * Math.sin(angle)]];
  }));
}

function radius(peer, models, many) {
  const span = peer.spans[0];
  const whole = models.find((one) => one.model === span.model)?.blocks ?? span.stop;
  return (many ? 7 : 12) + (many ? 6 : 12) * Math.sqrt((span.stop - span.start) / whole);
}

function rims(peer, models, size) {
  return peer.spans.map((span, place) => {
    const whole = models.find((one) => one.model === span.model)?.blocks ?? span.stop;
    const share = span.stop - span.start;
    return draw("circle", {
      class: "rim",
      r: Math.max(2, size - 3 - 5 * place),
      pathLength: whole,
      "stroke-dasharray": `${share} ${whole - share}`,
      "stroke-dashoffset": -span.start,
      transform: "rotate(-90)",
      "data-hue": hueOf(span.model),
      "data-state": span.state,
    });
  });
}

function seat(peer, models, place, many) {
  let held = known.get(peer.peer);
  if (!held) {
    const choose = () => { chosen = peer.peer; tell(); };
    held = {
      road: draw("line", {}),
      plate: draw("g", { class: "plate", tabindex: 0, role: "button", on: {
        click: choose, focus: choose, pointerenter: choose,
      } }),
    };
    known.set(peer.peer, held);
    roads.append(held.road);
    plates.append(held.plate);
  }
  const size = radius(peer, models, many);
  const looks = JSON.stringify([peer.spans, peer.road, peer.banned, size, many]);
  if (held.looks !== looks) {
    held.looks = looks;
    held.plate.replaceChildren(
      draw("circle", { class: "dish", r: size }),
      ...rims(peer, models, size),
      draw("text", { y: size + 14, class: many ? "hushed" : null }, short(peer.peer)),
    );
    set(held.plate, {
      "data-road": peer.road, "data-banned": String(peer.banned), "aria-label": peer.peer,
    });
    set(held.road, { "data-road": peer.road });
  }
  held.plate.style.transform = `translate(${place[0]}px, ${place[1]}px)`;
  return held;
}

// From us through each hop and home again, bowed a little so that two answers do not hide.
function path(flow, places, home) {
  const stops = flow.hops.map((hop) => places.get(hop.peer)).filter(Boolean);
  if (!stops.length) return "";
  const all = [home, ...stops, home];
  const bow = 10 + (flow.number % 5) * 5;
  return all.slice(1).reduce((told, [x, y], at) => {
    const [fromX, fromY] = all[at];
    const long = Math.hypot(x - fromX, y - fromY) || 1;
    const [midX, midY] = [(x + fromX) / 2, (y + fromY) / 2];
    const [bowX, bowY] = [(-(y - fromY) / long) * bow, ((x - fromX) / long) * bow];
    return `${told} Q ${midX + bowX} ${midY + bowY} ${x} ${y}`;
  }, `M ${home[0]} ${home[1]}`);
}

function keepOnly(map, wanted, drop) {
  for (const [name, held] of map) {
    if (wanted.has(name)) continue;
    drop(held);
    map.delete(name);
  }
}

export function drawSwarm(told) {
  last = told;
  const width = svg.clientWidth || 600;
  const height = Math.round(Math.min(Math.max(width * 0.66, 280), 460));
  set(svg, { viewBox: `0 0 ${width} ${height}`, height });
  const home = [width / 2, height / 2];
  const places = seats(told.peers, width, height);
  const many = told.peers.length > 24;
  keepOnly(known, new Set(places.keys()), (held) => { held.plate.remove(); held.road.remove(); });
  for (const peer of told.peers) {
    const place = places.get(peer.peer);
    const { road } = seat(peer, told.models, place, many);
    set(road, { x1: home[0], y1: home[1], x2: place[0], y2: place[1] });
  }
  mine.style.transform = `translate(${home[0]}px, ${home[1]}px)`;
  keepOnly(going, new Set(told.flows.map((one) => one.number)), (held) => held.remove());
  for (const flow of told.flows) {
    if (!going.has(flow.number)) {
      going.set(flow.number, draw("path", { class: "flow" }));
      flows.append(going.get(flow.number));
    }
    const model = told.models.find((one) => one.name === flow.model.split(":")[0]);
    set(going.get(flow.number), {
      d: path(flow, places, home), "data-hue": model ? hueOf(model.model) : 0,
    });
  }
  tell();
}

// The peer that was pointed at, in words.
function tell() {
  const place = byId("peer-told");
  const peer = last?.peers.find((one) => one.peer === chosen);
  if (!peer) {
    const more = last?.unseen ? `, and ${last.unseen} more that are not drawn` : "";
    place.textContent = last?.peers.length
      ? `${last.peers.length} peers at the table${more}. Point at a plate to read it.`
      : "Nobody serves a model here yet.";
    return;
  }
  const served = peer.spans.map((span) => {
    const name = last.models.find((one) => one.model === span.model)?.name ?? span.model.slice(0, 8);
    return `${name} ${span.start}:${span.stop} (${span.state}, ${span.tokens_s.toFixed(0)} tokens/s)`;
  });
  const rtt = peer.rtt_s === null ? "" : `, ${(peer.rtt_s * 1e3).toFixed(1)} ms`;
  const relay = peer.relay ? ` by ${short(peer.relay)}` : "";
  const banned = peer.banned ? "; BANNED" : "";
  place.textContent =
    `${peer.peer}: ${peer.road}${relay}${rtt}; ${served.join(", ")}; ${peer.device}${banned}`;
}

new ResizeObserver(() => { if (last) drawSwarm(last); }).observe(byId("swarm"));
