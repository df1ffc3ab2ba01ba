// What the explorers share: elements, labelled controls, pointers, and what a screen reader hears.

/** A name that nothing else has: in Jupyter each explorer brings its own copy of this module. */
const unique = () => `explorer-${Math.random().toString(36).slice(2)}`;

/** Make an element; attributes that are functions are listeners, and null ones are left out. */
export function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "circle", "text"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** Prepare the element of an explorer. */
export function begin(el, name) {
  el.replaceChildren();
  el.classList.add("explorer-live", `explorer-${name}`);
  // JupyterLab would take the arrow keys for itself.
  el.addEventListener("keydown", (event) => event.stopPropagation());
}

/** A labelled slider; `say` puts its value into words. Call `update` when the value has changed. */
export function slider({ label, min, max, step, say, input }) {
  const id = unique();
  const range = make("input", { id, type: "range", min, max, step, input: () => input(+range.value) });
  const output = make("output", { for: id });
  const node = make("div", { class: "explorer-slider" }, make("label", { for: id }, label), range, output);
  return {
    node,
    range,
    update(value) {
      range.value = value;
      output.textContent = say(value);
      range.setAttribute("aria-valuetext", say(value));
    },
  };
}

/** A group of radio buttons; options are lists of a value, what stands there, and what is spoken. */
export function choice({ legend, options, change }) {
  const name = unique();
  const inputs = new Map();
  const labels = options.map(([value, content, spoken]) => {
    const radio = make("input", { type: "radio", name, value, "aria-label": spoken ?? null, change: () => change(value) });
    inputs.set(value, radio);
    return make("label", {}, radio, content);
  });
  const node = make("div", { class: "explorer-choice", role: "radiogroup", "aria-labelledby": `${name}-legend` },
    make("span", { id: `${name}-legend` }, legend), make("div", {}, ...labels));
  return {
    node,
    update(value) {
      for (const [own, radio] of inputs) radio.checked = own === value;
    },
  };
}

export function checkbox({ label, change }) {
  const box = make("input", { type: "checkbox", change: () => change(box.checked) });
  return { node: make("label", { class: "explorer-check" }, box, label), update: (on) => (box.checked = on) };
}

export const button = (label, click) => make("button", { type: "button", class: "explorer-button", click }, label);

/** A region that is read out politely, a moment after the last change and not at every step. */
export function announcer(el) {
  const region = make("p", { class: "explorer-spoken", "aria-live": "polite" });
  el.append(region);
  let timer;
  return (text) => {
    clearTimeout(timer);
    timer = setTimeout(() => (region.textContent = text), 500);
  };
}

/** Send changes to the kernel, if there is one, at most every 60 ms. */
export function saver(model) {
  let timer = null;
  return () => {
    timer ??= setTimeout(() => {
      timer = null;
      model.save_changes();
    }, 60);
  };
}

/** Return what sets a trait of that name. */
export function setter(model) {
  const save = saver(model);
  return (name) => (value) => {
    model.set(name, value);
    save();
  };
}

/** Return the cells of a table that hold values, by name. */
export const valueCells = (names, tag = "dd") =>
  Object.fromEntries(names.map((name) => [name, make(tag, { class: "explorer-value", "data-value": name })]));

/** Bars of costs in nats, of which the longest possible is `full`; `words` are their labels by name. */
export function costBars(words, full) {
  const cells = {};
  const rows = Object.entries(words).flatMap(([name, label]) => {
    const bar = make("span", { class: `explorer-bar explorer-bar-${name}` });
    const value = make("dd", { class: "explorer-value", "data-value": name });
    cells[name] = { bar, value };
    return [make("dt", {}, label), value, make("dd", { class: "explorer-track", "aria-hidden": "true" }, bar)];
  });
  const length = (nats) => `${Math.min(100, (100 * nats) / full).toFixed(1)}%`;
  return {
    node: make("dl", { class: "explorer-bars" }, ...rows),
    /** Show costs by name; a bar in `starts` begins where another one ends. */
    update(costs, starts = {}) {
      for (const [name, { bar, value }] of Object.entries(cells)) {
        bar.style.width = length(costs[name]);
        if (name in starts) bar.style.marginLeft = length(starts[name]);
        value.textContent = `${number(costs[name], 2)} nats`;
      }
    },
  };
}

/** Call `move(x, y)` in shares of the surface's size: for a mouse that hovers, or a finger that drags. */
export function follow(surface, move, { hover = true } = {}) {
  const report = (event) => {
    const box = surface.getBoundingClientRect();
    move((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  };
  surface.addEventListener("pointerdown", (event) => {
    surface.setPointerCapture(event.pointerId);
    report(event);
  });
  surface.addEventListener("pointermove", (event) => {
    if (event.buttons || (hover && event.pointerType === "mouse")) report(event);
  });
}

/** Call `step(right, up)` for arrow keys; Shift makes small steps, Home calls `home`. */
export function arrows(surface, step, home) {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] };
  surface.addEventListener("keydown", (event) => {
    if (event.key === "Home") home();
    else if (event.key in steps) step(...steps[event.key], event.shiftKey);
    else return;
    event.preventDefault();
  });
}

/** Call `start` once, when a reader first reaches for the explorer; at once if nothing is to load. */
export function whenWanted(el, atOnce, start) {
  if (atOnce) return start();
  const kinds = ["pointerenter", "pointerdown", "focusin"];
  const first = () => {
    for (const kind of kinds) el.removeEventListener(kind, first);
    start();
  };
  for (const kind of kinds) el.addEventListener(kind, first);
}

/** Call `redraw` when the page turns dark or light: canvases do not follow by themselves. */
export function onThemeChange(redraw) {
  new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  new MutationObserver(redraw).observe(document.body, { attributeFilter: ["data-jp-theme-light"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

export const reducedMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Return red, green and blue of a computed colour. */
export function rgb(colour) {
  const context = make("canvas", { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
  context.fillStyle = colour;
  context.fillRect(0, 0, 1, 1);
  return context.getImageData(0, 0, 1, 1).data.slice(0, 3);
}

/** A digit of 28 by 28 pixels in the ink of the page: `draw` takes the share of ink of each pixel. */
export function digitCanvas(label, className = "explorer-digit") {
  const node = make("canvas", { width: 28, height: 28, role: "img", "aria-label": label, class: className });
  const context = node.getContext("2d", { willReadFrequently: true });
  const image = context.createImageData(28, 28);
  let ink = null, shown = null;
  const draw = (shares) => {
    shown = shares;
    ink ??= rgb(getComputedStyle(node).color);
    for (let i = 0; i < 784; i++) {
      image.data.set(ink, 4 * i);
      image.data[4 * i + 3] = Math.round(255 * shares[i]);
    }
    context.putImageData(image, 0, 0);
  };
  onThemeChange(() => {
    ink = null;
    if (shown) draw(shown);
  });
  return { node, draw };
}

/** Return the shares of ink of a picture that a page brings with it, a byte a pixel in base 64. */
export const pictureOf = (text) => Float64Array.from(atob(text), (c) => c.charCodeAt(0) / 255);

/** Write a number with a real minus sign. */
export const number = (value, decimals) => value.toFixed(decimals).replace(/^-(?=0\.?0*$)/, "").replace("-", "\u2212");
