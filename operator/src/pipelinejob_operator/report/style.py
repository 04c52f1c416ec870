"""How the report looks: its one style sheet, light and dark, and its few lines of script."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b1f27; --soft: #5b6472; --line: #e2e5ea; --grid: #eceef2;
  --accent: #2f6fde; --good: #1a7f4b; --bad: #c0352b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12151b; --card: #1a1e26; --ink: #e8ebf0; --soft: #9aa4b2; --line: #2c323d; --grid: #252a34;
    --accent: #6ea3ff; --good: #4ec38a; --bad: #ff8077;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 36px 24px 64px; } main.wide { max-width: 1640px; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 6px 14px; margin-bottom: 22px; }
h1 { font-size: 26px; letter-spacing: -.01em; margin: 0; }
h2 { font-size: 17px; margin: 0 0 2px; }
h3 { font-size: 13px; font-weight: 600; margin: 14px 0 4px; }
p { margin: 0; } .soft { color: var(--soft); } .note { color: var(--soft); font-size: 13px; margin-bottom: 12px; }
.state { font-size: 13px; font-weight: 600; padding: 2px 10px; border-radius: 99px; border: 1px solid currentColor; }
.good { color: var(--good); } .bad { color: var(--bad); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(290px, 1fr)); gap: 12px; margin: 0 0 16px; }
.fact, section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.fact { padding: 13px 16px; } .fact dt { color: var(--soft); font-size: 13px; }
.fact dd { margin: 2px 0 0; font-size: 22px; font-weight: 650; letter-spacing: -.01em;
  font-variant-numeric: tabular-nums; }
.fact dd + dd { font-size: 12.5px; font-weight: 400; letter-spacing: 0; color: var(--soft); }
section { padding: 20px 22px; margin-bottom: 16px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-size: 12px; fill: var(--soft); font-family: inherit; font-variant-numeric: tabular-nums; }
svg .on-dark, svg .on-light { font-size: 10.5px; font-weight: 600; pointer-events: none; }
svg .on-dark { fill: #fff; } svg .on-light { fill: #10141b; } svg .strong { fill: var(--ink); font-weight: 600; }
.grid { stroke: var(--grid); } .unseen { fill: transparent; }
.loss { fill: none; stroke: var(--accent); stroke-width: 2.4; stroke-linejoin: round; }
.loss.raw { stroke-opacity: .32; stroke-width: 1.2; } .attempt { stroke: var(--bad); stroke-dasharray: 3 4; }
.held { fill: var(--accent); fill-opacity: .28; stroke: var(--accent); }
.cap { stroke: var(--bad); stroke-dasharray: 5 4; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 12px 0 0; padding: 0; list-style: none;
  font-size: 12.5px; color: var(--soft); }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px;
  vertical-align: -1px; }
.scroll { overflow-x: auto; } .lead { margin: -12px 0 20px; } summary { cursor: pointer; color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 7px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-size: 12.5px; font-weight: 600; } tbody tr:last-child > * { border-bottom: 0; }
th[scope=row], th:first-child { text-align: left; }
th[scope=colgroup] { text-align: center; padding-bottom: 0; border: 0; }
tbody th { color: var(--ink); font-size: inherit; }
td.predicted { color: var(--soft); }
pre { font: 13px/1.5 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; margin: 10px 0 0; }
footer { color: var(--soft); font-size: 13px; padding: 4px 2px; } code { font-size: .93em; }
[data-tip] { cursor: default; } [data-tip]:hover { opacity: .82; } .unseen[data-tip]:hover { fill: var(--grid); }
#tip { position: fixed; z-index: 9; pointer-events: none; background: var(--ink); color: var(--page); font-size: 12.5px;
  padding: 5px 9px; border-radius: 7px; white-space: pre-line; opacity: 0; transition: opacity .08s; }
@media print { body { background: none; } section, .fact { break-inside: avoid; } }
"""

# What is shown when pointed at is a <title>, so nothing is lost without the script; with it, tips come at once.
SCRIPT = """
const tip = document.getElementById('tip');
for (const title of document.querySelectorAll('svg title')) {
  title.parentNode.dataset.tip = title.textContent;
  title.remove();
}
addEventListener('pointermove', event => {
  const mark = event.target.closest('[data-tip]');
  tip.style.opacity = mark ? 1 : 0;
  if (!mark) return;
  tip.textContent = mark.dataset.tip;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.min(event.clientX + 14, innerWidth - box.width - 8) + 'px';
  tip.style.top = Math.max(event.clientY - box.height - 12, 8) + 'px';
});
"""
