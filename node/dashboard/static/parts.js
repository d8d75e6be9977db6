// The smaller parts: rates, answers, jobs and their losses, audits, credit, how to join.

import { byId, clock, count, draw, make, nothing, set, short } from "./dom.js";

// A line through values, left to right, from 0 (or the least) up to the most.
function line(svg, values, { height, least = 0, filled = false }) {
  const width = svg.clientWidth || 320;
  const most = Math.max(...values, least + 1e-9);
  const x = (at) => (values.length > 1 ? (at / (values.length - 1)) * width : width);
  const y = (value) => height - 3 - ((value - least) / (most - least)) * (height - 8);
  const points = values.map((value, at) => `${x(at).toFixed(1)} ${y(value).toFixed(1)}`);
  set(svg, { viewBox: `0 0 ${width} ${height}`, height, preserveAspectRatio: "none" });
  const drawn = [draw("path", { class: "curve", d: `M ${points.join(" L ")}` })];
  if (filled) {
    const area = `M 0 ${height} L ${points.join(" L ")} L ${width} ${height} Z`;
    drawn.unshift(draw("path", { class: "under", d: area }));
  }
  svg.replaceChildren(...drawn);
}

export function showCounts(told) {
  line(byId("rates"), told.tokens_s, { height: 90, filled: true });
  const best = Math.max(...told.tokens_s);
  const node = told.node === null ? "" :
    `; the node in this process has ${count(told.node.sessions ?? 0)} sessions open`;
  byId("rates-told").textContent =
    `${count(told.tokens)} tokens since the start; at most ${count(best)} a second in the last two ` +
    `minutes; ${told.connections} connections, ${told.known} peers known${node}. ` +
    `Potluck ${told.version}.`;
}

export function showFlows(told) {
  const rows = told.flows.map((flow) => make("li", {},
    make("b", {}, flow.model), ` ${flow.tokens} tokens in ${clock(flow.seconds)}`,
    make("small", {}, flow.hops.map((hop) => `${short(hop.peer)} ${hop.start}:${hop.stop}`)
      .join(" → ")),
    flow.recoveries ? make("small", { class: "warm" }, `hops replaced: ${flow.recoveries}`) : null,
  ));
  byId("flows").replaceChildren(
    rows.length ? make("ul", { class: "rows" }, rows) : nothing("None now."));
}

function measures(job) {
  const unit = job.kind === "batch" ? "lines" : "epochs";
  const parts = [`${job.done}${job.total ? ` of ${job.total}` : ""} ${unit}`];
  if (job.errors) parts.push(`errors: ${job.errors}`);
  if (job.loss !== null) parts.push(`loss ${job.loss.toPrecision(4)}`);
  if (job.tokens_per_s) parts.push(`${count(job.tokens_per_s)} tokens/s`);
  if (job.peers) parts.push(`peers: ${job.peers}`);
  if (job.left_s) parts.push(`${clock(job.left_s)} left`);
  return parts.join(", ");
}

export function showJobs(told) {
  const rows = told.map((job) => {
    const share = job.total ? (100 * job.done) / job.total : 0;
    const row = make("article", { class: "job", "data-state": job.state },
      make("h3", {}, `${job.id} ${job.title}`, make("small", {}, ` ${job.state}`)),
      make("div", { class: "progress", role: "progressbar", "aria-valuenow": Math.round(share),
        "aria-label": `job ${job.id}` },
        make("span", { style: { width: `${share}%` } })),
      make("p", { class: "told" }, measures(job)),
      job.reason || job.note ? make("p", { class: "told warm" }, job.reason || job.note) : null,
    );
    return [row, job];
  });
  byId("jobs").replaceChildren(...(rows.length ? rows.map(([row]) => row)
    : [nothing("No jobs: potluck submit FILE makes one, and so does /v1/batches.")]));
  for (const [row, job] of rows) {
    if (job.points.length < 2) continue;
    const losses = job.points.map(([, loss]) => loss);
    const svg = draw("svg", { class: "loss", role: "img",
      "aria-label": `Loss of job ${job.id}, from ${losses[0]} to ${losses.at(-1)}` });
    row.append(svg);
    line(svg, losses, { height: 56, least: Math.min(...losses) });
  }
}

function table(heads, rows) {
  return make("div", { class: "wide" }, make("table", {},
    make("thead", {}, make("tr", {}, heads.map((one) => make("th", { scope: "col" }, one)))),
    make("tbody", {}, rows.map((row) => make("tr", {}, row.map((one) => make("td", {}, one)))))));
}

export function showAudits(trust = [], bans = { count: 0, bans: [] }) {
  const parts = [];
  if (bans.count) {
    parts.push(make("p", { class: "gap" }, `${bans.count} banned on evidence`));
    parts.push(table(["peer", "grounds", "for"], bans.bans.map((one) => [
      short(one.peer), one.grounds, one.left_s === null ? "good" : clock(one.left_s)])));
  } else {
    parts.push(make("p", { class: "whole" }, "Nobody is banned."));
  }
  if (trust.length) {
    parts.push(table(["peer", "right", "wrong", "in a row", "trust"], trust.map((one) => [
      short(one.peer), count(one.good), count(one.bad), count(one.in_a_row),
      one.banned ? "banned" : one.trust.toFixed(2)])));
  } else {
    parts.push(nothing("No answer of this home was audited yet (config.toml: audit = \"on\")."));
  }
  byId("audits").replaceChildren(...parts);
}

export function showCredit(told) {
  const parts = [];
  if (told === null) {
    parts.push(nothing("No node has run under this home: credit is earned by serving."));
  } else if (told.trouble) {
    parts.push(make("p", { class: "gap" }, told.trouble));
  } else if (!told.count) {
    parts.push(nothing("Nothing is signed yet."));
  } else {
    const { gave, took, owed } = told.sum;
    parts.push(make("p", { class: "told" },
      `gave ${count(gave)}, took ${count(took)}, is owed ${count(owed)}; of ${told.count} peers`));
    parts.push(table(["peer", "gave", "took", "owed"], told.accounts.map((one) =>
      [short(one.peer), count(one.gave), count(one.took), count(one.owed)])));
  }
  byId("credit").replaceChildren(...parts);
}

export function showJoin(told) {
  if (told.private) {
    byId("joining").replaceChildren(make("p", {},
      "A swarm of friends: ", make("code", {}, "potluck invite"),
      " prints the token that lets them in. It is no page's to show."));
    return;
  }
  if (!told.line) {
    byId("joining").replaceChildren(nothing("No address is known by which others could join."));
    return;
  }
  const button = make("button", { type: "button", on: { click: async () => {
    try {
      await navigator.clipboard.writeText(told.line);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(byId("join-line"));
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  } } }, "Copy");
  byId("joining").replaceChildren(
    make("p", {}, "Another machine joins with"),
    make("pre", { id: "join-line" }, told.line), button);
  if (told.here) {
    byId("joining").append(make("p", { class: "told" },
      "That address is this machine's own: start the node with --listen all for others."));
  }
}
