// Elements out of words. Whatever a stranger called himself goes in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

function fill(element, given, children) {
  for (const [name, value] of Object.entries(given ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, heard] of Object.entries(value)) element.addEventListener(event, heard);
    } else if (name === "style") {
      for (const [one, told] of Object.entries(value)) element.style.setProperty(one, told);
    } else {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  element.append(...children.flat().filter((one) => one !== null && one !== undefined));
  return element;
}

export const make = (tag, given, ...children) =>
  fill(document.createElement(tag), given, children);

export const draw = (tag, given, ...children) =>
  fill(document.createElementNS(SVG, tag), given, children);

export const set = (element, given) => fill(element, given, []);

// Every id of a peer begins alike: the end tells them apart.
export const short = (peer) => `…${peer.slice(-6)}`;

export function count(value) {
  if (value >= 1e9) return `${(value / 1e9).toPrecision(3)}G`;
  if (value >= 1e6) return `${(value / 1e6).toPrecision(3)}M`;
  if (value >= 1e4) return `${(value / 1e3).toPrecision(3)}k`;
  return Number(value.toPrecision(4)).toLocaleString("en");
}

export function clock(seconds) {
  const whole = Math.round(seconds);
  if (whole >= 2 * 86400) return `${Math.floor(whole / 86400)} days`;
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

export const nothing = (words) => make("p", { class: "nothing" }, words);
