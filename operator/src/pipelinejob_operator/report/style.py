"""How the report looks: its one style sheet, light and dark, and its few lines of script."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b1f27; --soft: #5b6472; --line: #e2e5ea; --grid: #eceef2;
  --accent: #2f6fde; --good: #1a7f4b; --bad: #c0352b;
  --forward: #3b7ddd; --backward: #e8833a; --weight: #b5651d; --optimizer: #7a5ac7; --send: #d4a72c; --data: #2a9d8f;
  --checkpoint: #a3adbd; --wait: #dfe3ea; --wait-ink: #8a93a3;
  --warm-up: #a9c3ec; --upstream: #cfd6e1; --downstream: #b9c2d1; --drain: #f2c9a5;
  --replicas: #cdbfe8; --idle: #e3e6ec;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12151b; --card: #1a1e26; --ink: #e8ebf0; --soft: #9aa4b2; --line: #2c323d; --grid: #252a34;
    --accent: #6ea3ff; --good: #4ec38a; --bad: #ff8077;
    --forward: #4f8ff0; --backward: #f0934d; --weight: #cf8140; --optimizer: #9a7fe0; --send: #e0b84a; --data: #45b8aa;
    --checkpoint: #5f6b80; --wait: #2c323d; --wait-ink: #7f8896;
    --warm-up: #38507a; --upstream: #3b4453; --downstream: #4c5667; --drain: #6e5138;
    --replicas: #54487a; --idle: #323945;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 36px 24px 64px; }
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
svg .on { fill: #fff; font-size: 10.5px; font-weight: 600; pointer-events: none; }
svg .strong { fill: var(--ink); } svg .ink { fill: #1b1f27; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 12px 0 0; padding: 0; list-style: none;
  font-size: 12.5px; color: var(--soft); }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px;
  vertical-align: -1px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 7px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-size: 12.5px; font-weight: 600; } tbody tr:last-child > * { border-bottom: 0; }
th[scope=row], th:first-child { text-align: left; }
th[scope=colgroup] { text-align: center; padding-bottom: 0; border: 0; }
tbody th { color: var(--ink); font-size: inherit; }
td.predicted { color: var(--soft); }
pre { font: 13px/1.5 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; margin: 10px 0 0; }
footer { color: var(--soft); font-size: 13px; padding: 4px 2px; } code { font-size: .93em; }
[data-tip] { cursor: default; } [data-tip]:hover { opacity: .82; }
#tip { position: fixed; z-index: 9; pointer-events: none; background: var(--ink); color: var(--page); font-size: 12.5px;
  padding: 5px 9px; border-radius: 7px; white-space: pre-line; opacity: 0; transition: opacity .08s; }
@media print { body { background: none; } section, .fact { break-inside: avoid; } }
"""

# Every tip is a <title> as well, so nothing is lost without the script.
SCRIPT = """
const tip = document.getElementById('tip');
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
