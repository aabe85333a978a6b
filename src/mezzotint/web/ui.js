/** What every view is made of: the base element, icons, and small things that more than one of them does. */

import { Directive, LitElement, directive, html, noChange, nothing, svg } from "./vendor/lit.js";
import { Watch, store } from "./store.js";

/** An element without a shadow: one style sheet, and labels that reach what they name. */
export class View extends LitElement {
  watch = new Watch(this);

  createRenderRoot() {
    return this;
  }
}

class Vars extends Directive {
  render() {
    return noChange;
  }

  update({ element }, [given]) {
    for (const [name, value] of Object.entries(given)) element.style.setProperty(name, String(value));
    return noChange;
  }
}

class Typed extends Directive {
  render(value) {
    return value;
  }

  update({ element }, [value]) {
    const isTyping = element === document.activeElement && this.before === value;
    this.before = value;
    if (!isTyping && element.value !== value) element.value = value;
    return noChange;
  }
}

/** The value of a control, left alone while somebody types into it: drawing again must not undo half a number. */
export const typed = directive(Typed);

/** Custom properties of an element, set from script: the page's policy allows no style attribute. */
export const vars = directive(Vars);

const PATHS = {
  create: "M4 20l4-1L19 8l-3-3L5 16zM14 7l3 3",
  edit: "M4 20c4 0 6-1 6-4a3 3 0 0 0-6 0c0 2-1 3-2 3M10 13L19 3c1-1 3 1 2 2L12 15",
  gallery: "M4 4h7v7H4zM13 4h7v7h-7zM4 13h7v7H4zM13 13h7v7h-7z",
  compare: "M4 5h16v14H4zM4 12h16M12 5v14",
  explain: "M9 18h6M10 21h4M12 3a6 6 0 0 0-4 10c1 1 1 2 1 3h6c0-1 0-2 1-3a6 6 0 0 0-4-10",
  models: "M12 3l8 4.5v9L12 21l-8-4.5v-9zM4 7.5l8 4.5 8-4.5M12 12v9",
  dice: "M5 5h14v14H5zM9 9h.01M15 15h.01M15 9h.01M9 15h.01M12 12h.01",
  locked: "M6 11h12v9H6zM8 11V8a4 4 0 0 1 8 0v3",
  unlocked: "M6 11h12v9H6zM8 11V8a4 4 0 0 1 7.5-2",
  stop: "M7 7h10v10H7z",
  undo: "M9 14L4 9l5-5M4 9h10a6 6 0 0 1 0 12h-3",
  redo: "M15 14l5-5-5-5M20 9H10a6 6 0 0 0 0 12h3",
  eraser: "M8 20h12M5 14l8-9 6 6-8 9H8z",
  invert: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  clear: "M6 6l12 12M18 6L6 18",
  show: "M2 12s4-7 10-7 10 7 10 7-4 7-10 7S2 12 2 12zM12 9a3 3 0 1 1 0 6 3 3 0 0 1 0-6",
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  fit: "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5",
  hand: "M12 3v18M3 12h18M12 3l-2.5 2.5M12 3l2.5 2.5M12 21l-2.5-2.5M12 21l2.5-2.5M3 12l2.5-2.5M3 12l2.5 2.5M21 12l-2.5-2.5M21 12l-2.5 2.5",
  open: "M4 18V5h6l2 3h8v10zM4 18l3-7h14",
  download: "M12 4v11M7 10l5 5 5-5M5 20h14",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  search: "M11 4a7 7 0 1 1 0 14 7 7 0 0 1 0-14zM16 16l4 4",
  left: "M15 5l-7 7 7 7",
  right: "M9 5l7 7-7 7",
  sun: "M12 8a4 4 0 1 1 0 8 4 4 0 0 1 0-8zM12 2v3M12 19v3M2 12h3M19 12h3M5 5l2 2M17 17l2 2M19 5l-2 2M7 17l-2 2",
  moon: "M20 14A8 8 0 0 1 10 4a8 8 0 1 0 10 10z",
  system: "M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16zM12 4v16",
  reuse: "M4 12a8 8 0 0 1 14-5l2 2M20 4v5h-5M20 12a8 8 0 0 1-14 5l-2-2M4 20v-5h5",
  check: "M5 12l5 5 9-10",
};

/** A line drawing; hidden from screen readers, since what it stands on is named. */
export function icon(name) {
  return html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true">${svg`<path d=${PATHS[name]} />`}</svg>`;
}

/** A square button that shows an icon and says a name. */
export function tool(name, label, act, { isPressed, isDisabled = false, keys } = {}) {
  return html`<button
    type="button"
    class="tool"
    aria-label=${label}
    title=${keys ? `${label} (${keys})` : label}
    aria-pressed=${isPressed === undefined ? nothing : String(isPressed)}
    ?disabled=${isDisabled}
    @click=${act}
  >
    ${icon(name)}
  </button>`;
}

/** A button to choose a picture with, which `open` is given; the same file may be chosen again. */
export function opener(label, open) {
  const chosen = ({ target }) => {
    const [file] = target.files;
    target.value = "";
    if (file) open(file);
  };
  return html`
    <button type="button" @click=${(event) => event.currentTarget.nextElementSibling.click()}>${icon("open")} ${label}</button>
    <input type="file" hidden aria-label=${label} accept="image/png,image/jpeg,image/webp" @change=${chosen} />
  `;
}

/** Put text on the clipboard and say whether it is there; without https the old way is left, from within the dialog. */
export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = Object.assign(document.createElement("textarea"), { value: text, className: "off-screen" });
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const isCopied = document.execCommand("copy");
    area.remove();
    if (!isCopied) return store.say(`${what} not copied: the browser does not allow it on this page`, "error");
  }
  store.say(`${what} copied`);
}

/** The PNG of a canvas. */
export function encoded(canvas) {
  return new Promise((done, failed) => {
    canvas.toBlob((blob) => (blob ? done(blob) : failed(new Error("the browser could not encode the picture"))), "image/png");
  });
}

/** Save bytes under a name. */
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** The decoded picture behind an address of this server. */
export async function pixels(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`the picture is not there any more (${answer.status})`);
  return createImageBitmap(await answer.blob(), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
}

/** Go to a view. */
export function go(view) {
  location.hash = view;
}

/** On a narrow screen the result stands below the form: bring it into sight. */
export function reveal(view) {
  if (matchMedia("(max-width: 60rem)").matches) view.querySelector(".result").scrollIntoView({ behavior: "smooth" });
}

/** A number for people: 2.1, 14.6, 1,234. */
export function figure(value) {
  return Number(value).toLocaleString("en", { maximumSignificantDigits: 4 });
}

/** Bytes for people. */
export function size(bytes) {
  if (!bytes) return "";
  const i = Math.min(3, Math.floor(Math.log(bytes) / Math.log(1000)));
  return `${figure((bytes / 1000 ** i).toPrecision(3))} ${["B", "kB", "MB", "GB"][i]}`;
}
