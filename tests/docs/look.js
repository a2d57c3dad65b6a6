// What is wrong with the page in a colour scheme of the theme: a list of sentences.
(scheme) => {
  const wrong = [];
  const name = (element) => element.textContent.trim().slice(0, 40);

  // at once, without fading
  const style = document.createElement("style");
  style.textContent = "* { transition: none !important }";
  document.head.append(style);
  document.body.dataset.mdColorScheme = scheme;

  if (!document.title.includes("tn_extensions")) wrong.push("has no title");
  if (document.querySelectorAll("h1").length !== 1) wrong.push("has not one heading");
  for (const image of document.images) {
    if (!image.alt) wrong.push(`no text for ${image.src.slice(0, 80)}`);
    if (!image.naturalWidth) wrong.push(`broken picture ${image.src.slice(0, 80)}`);
  }

  // formulas: typeset ones have a size, others are left as text
  for (const formula of document.querySelectorAll("math")) {
    const box = formula.getBoundingClientRect();
    if (!box.width || !box.height) wrong.push(`empty formula ${name(formula)}`);
  }
  const prose = document.querySelectorAll("article p, article li, article td, article h2");
  for (const element of prose) {
    const copy = element.cloneNode(true);
    copy.querySelectorAll("code, math").forEach((inner) => inner.remove());
    if (/\$|\\[a-z({[]/.test(copy.textContent)) wrong.push(`raw formula in ${name(copy)}`);
  }

  // nothing is wider than the page but what scrolls
  if (document.documentElement.scrollWidth > window.innerWidth) wrong.push("is too wide");

  // contrast of text, by WCAG 2
  const canvas = document.createElement("canvas").getContext("2d", {
    willReadFrequently: true,
  });
  const channels = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => top.slice(0, 3).map((c, i) => c * top[3] + below[i] * (1 - top[3]));
  const ground = (element) => {
    if (!element) return [255, 255, 255];
    const color = channels(getComputedStyle(element).backgroundColor);
    return color[3] === 1 ? color.slice(0, 3) : over(color, ground(element.parentElement));
  };
  const luminance = (color) => {
    const [r, g, b] = color.map((c) => {
      const share = c / 255;
      return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const seen = new Set();
  for (const element of document.querySelectorAll("article *, nav.md-tabs a, footer *")) {
    const direct = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!direct || !element.checkVisibility({ opacityProperty: true })) continue;
    if (element.closest(".headerlink, math")) continue;
    const own = getComputedStyle(element);
    const below = ground(element);
    const key = `${own.color} ${below} ${own.fontSize}`;
    if (seen.has(key)) continue;
    seen.add(key);
    const [light, dark] = [over(channels(own.color), below), below]
      .map(luminance)
      .sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05);
    const large = parseFloat(own.fontSize) >= 24;
    if (ratio < (large ? 3 : 4.5))
      wrong.push(`contrast ${ratio.toFixed(1)} of "${name(element)}" (${own.color})`);
  }
  return wrong;
}
