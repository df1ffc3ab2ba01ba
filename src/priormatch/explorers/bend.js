// Bend the line under three patches until their average is N(0, 1), with and without a lens.
import { announcer, begin, checkbox, make, number, setter, slider } from "./controls.js";
import { bars, figure, inWords, Patches } from "./patches.js";

function render({ model, el }) {
  begin(el, "bend");
  const set = setter(model);
  const say = announcer(el);
  const patches = new Patches(model.get("line"));
  const bent = patches.bent;
  // The derivative of the whole bend is the ratio of the densities, of which one carries the other.
  const slopes = bent.map((place, i) => Math.exp(patches.logQuilt[i] + 0.5 * place * place + 0.5 * Math.log(2 * Math.PI)));
  const picture = figure(patches), costs = bars();
  const node = (z) => Math.round((z - patches.nodes[0]) / patches.step);
  const bend = slider({ label: "bend", min: 0, max: 1, step: 0.01, say: (amount) => `${number(100 * amount, 0)} %`, input: set("amount") });
  const lens = checkbox({ label: "the decoder unbends what it gets", change: set("lens") });

  const update = () => {
    const amount = model.get("amount"), through = model.get("lens");
    const between = (whole, before) => whole.map((value, i) => (1 - amount) * before[i] + amount * value);
    const carried = between(bent, patches.nodes), slope = between(slopes, bent.map(() => 1));
    const codes = patches.means.map((mean) => carried[node(mean)]);
    const now = {
      reconstruction: patches.reconstruction(through ? patches.nodes : carried),
      information: patches.information,
      mismatch: patches.mismatch(carried, slope),
    };
    picture.update({ carried, slopes: slope, codes, seen: through ? patches.means : codes });
    costs.update(now);
    bend.update(amount);
    lens.update(through);
    const drawn = through || amount === 0 ? "The pictures are as before." : "The pictures have changed.";
    say(`Bent by ${number(100 * amount, 0)} %. ${inWords(now)}. ${drawn}`);
  };
  el.append(make("div", { class: "explorer-columns" }, picture.node,
    make("div", { class: "explorer-side" }, bend.node, lens.node, costs.node)));
  for (const trait of ["amount", "lens"]) model.on(`change:${trait}`, update);
  update();
}

export default { render };
