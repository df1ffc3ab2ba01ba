// On a page without a kernel: bring explorers to life when they come into view.

/** Stands in for a widget's model: traits with listeners, and nobody to save them for. */
class PageModel {
  constructor(traits) {
    this.traits = traits;
    this.listeners = {};
  }

  get(name) {
    return this.traits[name];
  }

  set(name, value) {
    if (JSON.stringify(this.traits[name]) === JSON.stringify(value)) return;
    this.traits[name] = value;
    for (const listener of this.listeners[`change:${name}`] ?? []) listener();
  }

  on(event, listener) {
    (this.listeners[event] ??= []).push(listener);
  }

  save_changes() {}
}

async function start(figure) {
  const traits = JSON.parse(figure.dataset.state);
  for (const name of JSON.parse(figure.dataset.files)) {
    traits[name] = new URL(traits[name], import.meta.url).href;
  }
  const { default: explorer } = await import(`./${figure.dataset.explorer}.js`);
  // Built aside, so that the still picture stays if something fails.
  const el = document.createElement("div");
  const stage = figure.querySelector(".explorer-stage");
  const still = [...stage.childNodes];
  stage.append(el);
  try {
    await explorer.render({ model: new PageModel(traits), el });
    for (const node of still) node.remove();
    figure.dataset.alive = "";
  } catch (error) {
    el.remove();
    throw error;
  }
}

const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    start(target);
  }
}, { rootMargin: "300px" });

for (const figure of document.querySelectorAll("figure[data-explorer]")) near.observe(figure);
