// Beside plotly's camera, which takes one format, a button for each: PNG and SVG, on the background of the page.
const FORMATS = { PNG: { format: "png", scale: 2 }, SVG: { format: "svg", scale: 1 } };
const MARK = "qlab-download";

function save(plot, camera, options) {
  const holder = plot.closest('[class*="st-key-"]');
  const key = holder ? [...holder.classList].find((name) => name.startsWith("st-key-")).slice("st-key-".length) : "chart";
  const before = plot._context.toImageButtonOptions;
  const paper = plot.layout.paper_bgcolor;
  plot._context.toImageButtonOptions = { ...before, ...options, filename: `qlab-${key}` };
  plot.layout.paper_bgcolor = getComputedStyle(document.querySelector('[data-testid="stApp"]')).backgroundColor;
  try {
    camera.click(); // takes its copy of the chart before it returns
  } finally {
    plot._context.toImageButtonOptions = before;
    plot.layout.paper_bgcolor = paper;
  }
}

function equip(plot) {
  const camera = plot.querySelector('.modebar-btn[data-title^="Download plot"]');
  if (!camera || camera.parentElement.querySelector(`.${MARK}`)) return;
  camera.style.display = "none";
  for (const [name, options] of Object.entries(FORMATS)) {
    const button = document.createElement("a");
    button.className = `modebar-btn ${MARK}`;
    button.rel = "tooltip";
    button.role = "button";
    button.tabIndex = 0;
    button.dataset.title = `Download as ${name}`;
    button.setAttribute("aria-label", button.dataset.title);
    button.textContent = name;
    button.style.cssText = "font-size:11px;font-weight:600;color:inherit;text-decoration:none;opacity:0.75";
    const act = () => save(plot, camera, options);
    button.addEventListener("click", act);
    button.addEventListener("keydown", (event) => event.key === "Enter" && act());
    camera.before(button);
  }
  camera.parentElement.style.cssText += ";display:inline-flex;gap:2px";
}

export default function () {
  let asked = false;
  const look = () => {
    asked = false;
    document.querySelectorAll(".js-plotly-plot").forEach(equip);
  };
  const seen = new MutationObserver(() => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(look);
  });
  seen.observe(document.body, { childList: true, subtree: true });
  look();
  return () => seen.disconnect();
}
