// The latent plane: the quilt as a picture, the circles of N(0, I), codes, ellipses, and a mark.
import { make, onThemeChange } from "./controls.js";
import { tensorsOf } from "./network.js";

export const LIMIT = 4;
export const STEPS = 50; // nodes in a unit of the stored grid
const NODES = 2 * LIMIT * STEPS + 1;
const MASSES = [0.5, 0.9, 0.99];
export const DIGIT_COLOURS = ["#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9"];
// Matplotlib's viridis and RdBu, at evenly spaced places.
const VIRIDIS = ["440154", "481f70", "443983", "3b528b", "31688e", "287c8e", "21918c", "20a486", "35b779", "5ec962", "90d743", "c8e020", "fde725"];
const RED_BLUE = ["67001f", "b1182b", "d6604d", "f3a481", "fddbc7", "f6f7f7", "d1e5f0", "90c4dd", "4393c3", "2065ab", "053061"];

const LN_TWO_PI = Math.log(2 * Math.PI);

/** Return the nearest place of the stored grid. */
export const snap = (z) => z.map((x) => Math.round(Math.min(LIMIT, Math.max(-LIMIT, x)) * STEPS) / STEPS);

/** The stored grid: at each node ln q(z)/p(z) in hundredths of a nat, and where q is thin. */
export class Field {
  constructor({ differences, thinness }) {
    // Stored are the differences of differences along both axes, which are small numbers.
    const ratio = Int16Array.from(differences);
    for (let i = 0; i < NODES; i++) for (let j = 1; j < NODES; j++) ratio[i * NODES + j] += ratio[i * NODES + j - 1];
    for (let i = NODES; i < NODES * NODES; i++) ratio[i] += ratio[i - NODES];
    this.ratio = ratio;
    this.thinness = thinness;
  }

  index([x, y]) {
    return Math.round((x + LIMIT) * STEPS) * NODES + Math.round((y + LIMIT) * STEPS);
  }

  /** ln q(z)/p(z) in nats, rounded to hundredths by Python. */
  logRatio(z) {
    return this.ratio[this.index(z)] / 100;
  }

  /** Whether q is thinner than the prior, ten times thinner, and in a hole. */
  kind(z) {
    const bits = this.thinness[this.index(z)];
    return { thinner: !!(bits & 1), tenTimes: !!(bits & 2), hole: !!(bits & 4) };
  }

  /** Paint the grid, a pixel a node. */
  picture(view) {
    const canvas = make("canvas", { width: NODES, height: NODES });
    const context = canvas.getContext("2d");
    const image = context.createImageData(NODES, NODES);
    const table = colourTable(view === "ratio" ? RED_BLUE : VIRIDIS);
    for (let i = 0; i < NODES; i++) {
      for (let j = 0; j < NODES; j++) {
        const x = i / STEPS - LIMIT, y = j / STEPS - LIMIT;
        const ratio = this.ratio[i * NODES + j] / 100;
        const share = view === "ratio" ? (ratio + 3) / 6 : (ratio - (x * x + y * y) / 2 - LN_TWO_PI + 8) / 7;
        const colour = 3 * Math.max(0, Math.min(255, Math.round(255 * share)));
        const pixel = 4 * ((NODES - 1 - j) * NODES + i);
        image.data[pixel] = table[colour];
        image.data[pixel + 1] = table[colour + 1];
        image.data[pixel + 2] = table[colour + 2];
        image.data[pixel + 3] = 255;
      }
    }
    context.putImageData(image, 0, 0);
    return canvas;
  }
}

function colourTable(stops) {
  const channel = (stop, k) => parseInt(stops[stop].slice(2 * k, 2 * k + 2), 16);
  const table = new Uint8Array(768);
  for (let i = 0; i < 256; i++) {
    const place = (i / 255) * (stops.length - 1), low = Math.min(Math.floor(place), stops.length - 2);
    for (let k = 0; k < 3; k++) {
      table[3 * i + k] = channel(low, k) + (place - low) * (channel(low + 1, k) - channel(low, k));
    }
  }
  return table;
}

const fields = new Map();

/** Return the field of a trait, made once for all explorers of a page. */
export function fieldOf(source) {
  if (!fields.has(source)) {
    const field = tensorsOf(source).then((tensors) => new Field(tensors));
    field.catch(() => fields.delete(source));
    fields.set(source, field);
  }
  return fields.get(source);
}

/** The legend of the ten digits. */
export function digitLegend() {
  const keys = DIGIT_COLOURS.map((colour, digit) =>
    make("li", {}, make("span", { style: `background:${colour}` }), String(digit)));
  return make("ul", { class: "explorer-legend", "aria-label": "Colours of the digits" }, ...keys);
}

/** The legend of the colours of a view. */
export function colourKey(view) {
  const [stops, low, title, high] = view === "ratio"
    ? [RED_BLUE, "−3", "ln q(z)/p(z) in nats", "3"]
    : [VIRIDIS, "−8", "ln q(z) in nats", "−1"];
  const bar = make("span", { style: `background:linear-gradient(to right,${stops.map((stop) => `#${stop}`).join()})` });
  const labels = [low, title, high].map((text) => make("span", {}, text));
  return make("div", { class: "explorer-key" }, bar, make("div", { class: "explorer-ticks" }, ...labels));
}

/** Two canvases on top of each other: below what rarely changes, above what moves. */
export class Plane {
  constructor(paintBase, paintTop) {
    this.base = make("canvas", { "aria-hidden": "true" });
    this.top = make("canvas", { class: "explorer-surface" });
    const ticks = (name, values) => make("div", { class: `explorer-ticks explorer-ticks-${name}`, "aria-hidden": "true" },
      ...values.map((value) => make("span", {}, value)));
    this.node = make("div", { class: "explorer-plane" },
      ticks("up", ["4", "2", "z₂", "−2", "−4"]),
      make("div", { class: "explorer-square" }, this.base, this.top),
      ticks("right", ["−4", "−2", "z₁", "2", "4"]));
    this.paintBase = paintBase;
    this.paintTop = paintTop;
    onThemeChange(() => this.drawAll());
    new ResizeObserver(() => this.resize()).observe(this.base);
  }

  /** Make it a picture that answers no pointer; its `aria-label` says what is seen. */
  asPicture() {
    this.top.classList.remove("explorer-surface");
    this.top.setAttribute("role", "img");
  }

  /** Name the axes. */
  name(right, up) {
    this.node.querySelector(".explorer-ticks-right").children[2].textContent = right;
    this.node.querySelector(".explorer-ticks-up").children[2].textContent = up;
  }

  resize() {
    const pixels = Math.round(this.base.clientWidth * Math.min(2, devicePixelRatio));
    if (!pixels || pixels === this.base.width) return;
    for (const canvas of [this.base, this.top]) canvas.width = canvas.height = pixels;
    this.drawAll();
  }

  drawAll() {
    this.drawBase();
    this.drawTop();
  }

  drawBase() {
    this.begin(this.base);
    this.paintBase(this);
  }

  drawTop() {
    this.begin(this.top);
    this.paintTop(this);
  }

  begin(canvas) {
    this.context = canvas.getContext("2d");
    this.context.clearRect(0, 0, canvas.width, canvas.height);
    this.unit = canvas.width / (2 * LIMIT); // pixels in a unit of z
    this.line = canvas.width / Math.max(1, this.base.clientWidth); // pixels in a CSS pixel
    this.ink = getComputedStyle(this.top).color;
  }

  place([x, y]) {
    return [(x + LIMIT) * this.unit, (LIMIT - y) * this.unit];
  }

  /** Return the code at shares of the width and of the height. */
  static code(right, down) {
    return [LIMIT * (2 * right - 1), LIMIT * (1 - 2 * down)];
  }

  image(canvas) {
    this.context.imageSmoothingQuality = "high";
    this.context.drawImage(canvas, 0, 0, this.base.width, this.base.height);
  }

  /** Draw the circles that hold the stated mass of N(0, I). */
  circles(colour, halo) {
    for (const mass of MASSES) {
      const radius = Math.sqrt(-2 * Math.log(1 - mass));
      this.ellipse([0, 0], [radius, radius], colour, 1.2);
      this.write(`${100 * mass} %`, ...this.place([0, radius]), colour, halo);
    }
  }

  write(text, x, y, colour, halo) {
    const { context } = this;
    context.font = `600 ${11 * this.line}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.lineJoin = "round";
    context.strokeStyle = halo;
    context.lineWidth = 3.5 * this.line;
    context.strokeText(text, x, y);
    context.fillStyle = colour;
    context.fillText(text, x, y);
  }

  ellipse(centre, radii, colour, width = 1) {
    const { context } = this;
    context.beginPath();
    context.ellipse(...this.place(centre), radii[0] * this.unit, radii[1] * this.unit, 0, 0, 2 * Math.PI);
    context.strokeStyle = colour;
    context.lineWidth = width * this.line;
    context.stroke();
  }

  /** Draw codes in the colours of their digits; values are pairs of coordinates in one array. */
  dots(values, labels, radius = 1.7, colour = null) {
    for (let i = 0; i < labels.length; i++) {
      this.context.fillStyle = colour ?? DIGIT_COLOURS[labels[i]];
      this.context.beginPath();
      this.context.arc(...this.place([values[2 * i], values[2 * i + 1]]), radius * this.line, 0, 2 * Math.PI);
      this.context.fill();
    }
  }

  /** Draw ellipses at two standard deviations of posteriors, in the colours of their digits or in one. */
  posteriors({ means, scales, labels }, colour = null) {
    for (let i = 0; i < labels.length; i++) {
      this.ellipse([means[2 * i], means[2 * i + 1]], [2 * scales[2 * i], 2 * scales[2 * i + 1]], colour ?? DIGIT_COLOURS[labels[i]]);
    }
  }

  /** Show the surroundings of a posterior through a lens, in the corner that is farthest from it. */
  lens(centre, scales, picture, colour) {
    const { context } = this;
    const radius = this.base.width * 0.17, away = this.base.width / 2 - radius - 6 * this.line;
    const middle = centre.map((x, j) => this.base.width / 2 + (j ? 1 : -1) * Math.sign(x || 1) * away);
    const width = 3 * Math.max(...scales); // from the middle of the lens to its rim
    const zoom = radius / (width * this.unit);
    const [x, y] = this.place(centre);
    context.save();
    context.beginPath();
    context.arc(...middle, radius, 0, 2 * Math.PI);
    context.clip();
    context.setTransform(zoom, 0, 0, zoom, middle[0] - zoom * x, middle[1] - zoom * y);
    context.drawImage(picture, 0, 0, this.base.width, this.base.height);
    context.restore();
    for (const deviations of [1, 2]) {
      context.beginPath();
      context.ellipse(...middle, ...scales.map((scale) => (deviations * scale * radius) / width), 0, 0, 2 * Math.PI);
      for (const [stroke, thickness] of [["#fff", 4.5], [colour, 2]]) {
        context.strokeStyle = stroke;
        context.lineWidth = thickness * this.line;
        context.stroke();
      }
    }
    context.beginPath();
    context.arc(...middle, radius, 0, 2 * Math.PI);
    context.strokeStyle = "#fff";
    context.lineWidth = 1.5 * this.line;
    context.stroke();
    this.write(`× ${Math.round(zoom)}`, middle[0], middle[1] + radius - 10 * this.line, "#fff", "#000");
  }

  /** Mark a place so that it is seen on every ground. */
  mark(z, radius = 7) {
    for (const [colour, width] of [["#000", 4.5], ["#fff", 2]]) this.circleOfPixels(z, radius, colour, width);
  }

  circleOfPixels(z, radius, colour, width) {
    const { context } = this;
    context.beginPath();
    context.arc(...this.place(z), radius * this.line, 0, 2 * Math.PI);
    context.strokeStyle = colour;
    context.lineWidth = width * this.line;
    context.stroke();
  }
}
