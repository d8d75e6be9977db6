// Each model block by block: how many serve it, and who; a block that nobody serves is a hole.

import { byId, make, nothing, short } from "./dom.js";

const HUES = 6;
const hues = new Map();

// A model keeps the colour that it was first seen with.
export function hueOf(model) {
  if (!hues.has(model)) hues.set(model, hues.size % HUES);
  return hues.get(model);
}

function cells(model) {
  const wide = model.blocks <= (innerWidth < 700 ? 16 : 40);
  return model.replicas.map((many, block) => make("span", {
    class: "cell",
    "data-many": Math.min(many, 4),
    title: `block ${block}: ${many === 0 ? "nobody serves it" : `${many} peers`}`,
  }, wide ? String(many) : ""));
}

function bars(model, peers) {
  const spans = peers.flatMap((peer) => peer.spans
    .filter((span) => span.model === model.model)
    .map((span) => ({ ...span, peer })));
  spans.sort((one, other) => one.start - other.start || one.stop - other.stop);
  return spans.map((span) => make("span", {
    class: "bar",
    "data-road": span.peer.road,
    "data-state": span.state,
    "data-banned": String(span.peer.banned),
    title: `${span.peer.peer} ${span.start}:${span.stop}, ${span.state}, ${span.peer.road}`,
    style: { "grid-column": `${span.start + 1} / ${span.stop + 1}` },
  }, make("span", {}, short(span.peer.peer))));
}

export function showCoverage(told) {
  const found = told.models.map((model) => {
    const gaps = model.missing.map(([start, stop]) => `${start}:${stop}`).join(", ");
    const least = Math.min(...model.replicas);
    const grid = { "grid-template-columns": `repeat(${model.blocks}, minmax(0, 1fr))` };
    return make("article", { class: "model", "data-hue": hueOf(model.model) },
      make("h3", {}, model.name, make("small", {}, ` ${model.blocks} blocks`)),
      make("p", { class: gaps ? "gap" : "whole" },
        gaps ? `nobody serves ${gaps}` : `whole, each block at least ${least}×`),
      make("div", { class: "blocks", style: grid }, cells(model)),
      make("div", { class: "spans", style: grid }, bars(model, told.peers)),
    );
  });
  byId("coverage").replaceChildren(
    ...(found.length ? found : [nothing("No model is served here yet.")]));
}
