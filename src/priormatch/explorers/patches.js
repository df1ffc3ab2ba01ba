// Three patches on a line that is bent or stretched: their densities, their pictures, their costs.
import { costBars, digitCanvas, make, number, pictureOf } from "./controls.js";

const WIDTH = 420, HEIGHT = 190, BASE = 150, REACH = 4.5, TOP = 0.62; // TOP of the densities
const FULL = 1.4; // nats of the longest bar
const BARS = { reconstruction: "reconstruction", information: "information", mismatch: "mismatch" };

const LOG_ROOT_TWO_PI = 0.5 * Math.log(2 * Math.PI);
const logNormal = (z, mean, scale) => -0.5 * ((z - mean) / scale) ** 2 - Math.log(scale) - LOG_ROOT_TWO_PI;
const logSumExp = (values) => {
  const most = Math.max(...values);
  return most + Math.log(values.reduce((sum, value) => sum + Math.exp(value - most), 0));
};

/** The patches on the grid, as Python sends them; all is computed at its nodes. */
export class Patches {
  constructor({ means, scales, first, step, bent, pictures }) {
    Object.assign(this, { means, scales, step, bent, images: pictures.map(pictureOf) });
    this.nodes = bent.map((_, i) => first + step * i);
    this.log = this.nodes.map((z) => means.map((mean, n) => logNormal(z, mean, scales[n])));
    this.logQuilt = this.log.map((logs) => logSumExp(logs) - Math.log(means.length));
    this.information = Math.log(means.length) - this.reconstruction(this.nodes);
  }

  /** The decoder's log probability of each image at a code. */
  logShares(z) {
    const logs = this.means.map((mean, n) => logNormal(z, mean, this.scales[n]));
    const total = logSumExp(logs);
    return logs.map((log) => log - total);
  }

  /** The decoder's mean picture at a code. */
  picture(z) {
    const shares = this.logShares(z).map(Math.exp);
    return this.images[0].map((_, pixel) => shares.reduce((sum, share, n) => sum + share * this.images[n][pixel], 0));
  }

  /** -E log P(X|z), where `seen` is what the decoder is given for each node. */
  reconstruction(seen) {
    let sum = 0;
    seen.forEach((z, i) => {
      const shares = this.logShares(z);
      this.log[i].forEach((log, n) => (sum -= (Math.exp(log) * shares[n]) / this.means.length));
    });
    return sum * this.step;
  }

  mismatch(carried, slopes) {
    let sum = 0;
    this.logQuilt.forEach((log, i) => (sum += Math.exp(log) * (log - Math.log(slopes[i]) - logNormal(carried[i], 0, 1))));
    return sum * this.step;
  }
}

const x = (z) => ((z + REACH) / (2 * REACH)) * WIDTH;
const y = (density) => BASE - (density / TOP) * (BASE - 8);
const curve = (places, densities) => places.map((z, i) => `${i ? "L" : "M"}${x(z).toFixed(1)} ${y(densities[i]).toFixed(1)}`).join("");

/** What is seen of the line, and of the pictures that stand below it. */
export function figure(patches) {
  const quilt = make("path", { class: "explorer-quilt" });
  const bumps = patches.means.map(() => make("path", { class: "explorer-q" }));
  const threads = patches.means.map(() => make("line", { class: "explorer-axis", y1: BASE, y2: HEIGHT }));
  const codes = patches.means.map(() => make("circle", { class: "explorer-point", cy: BASE, r: 6 }));
  // The line's own marks, which bunch and spread as it is bent.
  const marks = patches.nodes.map((_, i) => i).filter((i) => i % 10 === 0);
  const ruler = make("path", { class: "explorer-ruler" });
  const places = Array.from({ length: 181 }, (_, i) => REACH * (i / 90 - 1));
  const key = (row, name, words) => [
    make("line", { class: name, x1: 2, x2: 24, y1: 10 + 18 * row, y2: 10 + 18 * row }),
    make("text", { x: 30, y: 14 + 18 * row }, words)];
  const plot = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" },
    make("line", { class: "explorer-axis", x1: 0, x2: WIDTH, y1: BASE, y2: BASE }), ruler,
    make("path", { class: "explorer-prior", d: curve(places, places.map((z) => Math.exp(logNormal(z, 0, 1)))) }),
    ...bumps, quilt, ...threads, ...codes,
    ...key(0, "explorer-prior", "N(0, 1)"), ...key(1, "explorer-q", "patches Q(z|X)"), ...key(2, "explorer-quilt", "their average q"));
  const digits = patches.means.map(() => digitCanvas(""));
  const node = make("div", { class: "explorer-main" }, plot, make("div", { class: "explorer-trio" }, ...digits.map((digit) => digit.node)));
  return {
    node,
    /** Show where nodes and codes are carried, and what the decoder draws at what it is given. */
    update({ carried, slopes, codes: at, seen }) {
      const inside = carried.map((z, i) => i).filter((i) => Math.abs(carried[i]) < REACH);
      const path = (log) => curve(inside.map((i) => carried[i]), inside.map((i) => Math.exp(log(i)) / slopes[i]));
      const thirds = Math.log(patches.means.length);
      bumps.forEach((bump, n) => bump.setAttribute("d", path((i) => patches.log[i][n] - thirds)));
      quilt.setAttribute("d", path((i) => patches.logQuilt[i]));
      ruler.setAttribute("d", marks.filter((i) => Math.abs(carried[i]) < REACH).map((i) => `M${x(carried[i]).toFixed(1)} ${BASE}v7`).join(""));
      at.forEach((code, n) => {
        codes[n].setAttribute("cx", x(code));
        threads[n].setAttribute("x1", x(code));
        threads[n].setAttribute("x2", (WIDTH * (n + 0.5)) / at.length);
        digits[n].draw(patches.picture(seen[n]));
        digits[n].node.setAttribute("aria-label", `The picture decoded from the code at ${number(code, 2)}`);
      });
      plot.setAttribute("aria-label", `Three patches with their codes at ${at.map((code) => number(code, 2)).join(", ")}, their average, and N(0, 1)`);
    },
  };
}

/** Bars of the three costs. */
export const bars = () => costBars(BARS, FULL);

/** The costs in words, for who listens. */
export const inWords = ({ reconstruction, information, mismatch }) =>
  `Reconstruction ${number(reconstruction, 2)}, information ${number(information, 2)}, mismatch ${number(mismatch, 2)} nats`;
