"""The style sheet of `report.html`: readable in light and dark, on a phone and on paper, without a web font."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fcfbf9; --panel: #ffffff; --sunk: #f4f2ee; --line: #e4e0d9; --text: #1f2226; --soft: #646a72;
  --ours: #d9600f; --base: #3d86c6; --good: #17734f; --good-bg: #e3f3ea; --bad: #a8321f; --bad-bg: #fbe9e5;
  --mild: #7a5a00; --mild-bg: #fbf1d6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #141618; --panel: #1b1e21; --sunk: #202428; --line: #31363b; --text: #e7e5e1; --soft: #9aa1a9;
    --ours: #f0843c; --base: #6aaae4; --good: #6fd3a5; --good-bg: #173226; --bad: #ff9a86; --bad-bg: #3b1f1a;
    --mild: #e8c566; --mild-bg: #35290d;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 58rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
h1, h2, h3 { line-height: 1.25; letter-spacing: -0.01em; text-wrap: balance; margin: 0; }
h1 { font-size: clamp(1.9rem, 1.4rem + 2.4vw, 2.8rem); font-weight: 680; letter-spacing: -0.025em; }
h2 { font-size: 1.3rem; font-weight: 640; margin: 3.5rem 0 1.1rem; }
h3 { font-size: 1.02rem; font-weight: 620; }
p { margin: 0.5rem 0; }
a { color: inherit; text-decoration-color: var(--ours); text-underline-offset: 0.2em; }
a:focus-visible, [tabindex]:focus-visible, summary:focus-visible {
  outline: 2px solid var(--ours);
  outline-offset: 2px;
}
code, pre, .mono {
  font-family: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, monospace;
  font-size: 0.875em;
}
.kicker { color: var(--soft); font-size: 0.85rem; margin: 0 0 0.6rem; }
.kicker b { color: var(--ours); font-weight: 650; }
.lead { font-size: 1.12rem; color: var(--soft); max-width: 42rem; text-wrap: pretty; }
.soft { color: var(--soft); }
.small { font-size: 0.88rem; }
.verdict { display: flex; flex-wrap: wrap; gap: 0.6rem 1.6rem; align-items: center; margin: 1.6rem 0 0; }
.badge {
  display: inline-block; padding: 0.15rem 0.7rem; border-radius: 99px; font-size: 0.86rem; font-weight: 620;
  white-space: nowrap; background: var(--mild-bg); color: var(--mild);
}
.badge.good { background: var(--good-bg); color: var(--good); }
.badge.bad { background: var(--bad-bg); color: var(--bad); }
.panel { background: var(--panel); border: 1px solid var(--line); border-radius: 12px; padding: 1.4rem 1.5rem; }
.panel + .panel { margin-top: 1.1rem; }
.claim header { display: flex; gap: 0.6rem 1rem; justify-content: space-between; align-items: flex-start; }
.claim .body { display: grid; grid-template-columns: minmax(16rem, 1fr) 2fr; gap: 1rem 2.4rem; margin-top: 1.1rem; }
.gain {
  font-size: 2rem; font-weight: 640; letter-spacing: -0.02em; line-height: 1.15;
  font-variant-numeric: tabular-nums;
}
.gain small { font-size: 0.95rem; font-weight: 450; letter-spacing: 0; color: var(--soft); white-space: nowrap; }
.dots {
  display: grid; grid-template-columns: max-content 1fr max-content; gap: 0.45rem 0.9rem;
  align-items: center; align-content: center;
}
.dots .track { position: relative; height: 1.5rem; }
.dots .track::before { content: ""; position: absolute; inset: 50% 0 auto; border-top: 1px solid var(--line); }
.dots i {
  position: absolute; top: 50%; width: 0.72rem; height: 0.72rem; margin: -0.36rem 0 0 -0.36rem; border-radius: 50%;
  background: var(--base); opacity: 0.85;
}
.dots .ours i { background: var(--ours); }
.dots .mean {
  position: absolute; top: 10%; height: 80%; border-left: 2px solid var(--text); opacity: 0.55;
  margin-left: -1px;
}
.dots .value { font-variant-numeric: tabular-nums; font-size: 0.92rem; text-align: right; }
.dots .name { font-size: 0.92rem; }
details { margin-top: 0.9rem; }
summary { cursor: pointer; color: var(--soft); font-size: 0.88rem; }
.scroll { overflow-x: auto; margin-top: 0.7rem; }
.panel > .scroll:first-child { margin-top: -0.4rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: 0.88rem; padding-bottom: 0.5rem; }
th, td { padding: 0.42rem 0.9rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
tr:last-child > * { border-bottom: 0; }
thead th {
  color: var(--soft); font-weight: 520; font-size: 0.84rem; border-bottom-color: var(--soft);
  white-space: nowrap;
}
tbody th { font-weight: 480; }
.num { text-align: right; white-space: nowrap; }
figure { margin: 1.1rem 0 0; }
figure.panel { padding: 1.2rem 1.4rem; }
figcaption { margin-bottom: 0.8rem; }
figcaption span { display: block; color: var(--soft); font-size: 0.92rem; }
figure svg { display: block; width: 100%; height: auto; margin: 0 auto; overflow: visible; }
.sample { border-left: 3px solid var(--line); padding: 0.1rem 0 0.1rem 1rem; margin-top: 1.1rem; }
.sample pre { margin: 0.15rem 0; white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.5; }
.sample .prompt { color: var(--soft); }
.sample .completion { border-left: 3px solid var(--ours); margin-left: calc(-1rem - 3px); padding-left: 1rem; }
pre.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0.7rem 0 0; line-height: 1.5; }
.share { display: block; height: 0.5rem; min-width: 2px; border-radius: 4px; background: var(--ours); opacity: 0.8; }
td.bar { width: 42%; vertical-align: middle; min-width: 7rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 0 2.4rem; margin: 0; }
.facts div {
  display: flex; justify-content: space-between; gap: 1rem; border-bottom: 1px solid var(--line);
  padding: 0.36rem 0;
}
.facts dt { color: var(--soft); font-size: 0.9rem; }
.facts dd { margin: 0; text-align: right; overflow-wrap: anywhere; font-size: 0.9rem; }
footer { margin-top: 4rem; color: var(--soft); font-size: 0.86rem; }
@media (max-width: 40rem) {
  main { padding: 1.8rem 1rem 3rem; }
  h2 { margin-top: 2.6rem; }
  .panel { padding: 1.1rem 1rem; border-radius: 10px; }
  .claim header { flex-direction: column-reverse; }
  .claim .body { grid-template-columns: 1fr; }
  td.bar { width: auto; min-width: 3.5rem; }
  th, td { padding: 0.42rem 0.5rem; }
  figure.panel { padding: 1rem 0.6rem; }
  figure.panel figcaption, figure.panel > .scroll, figure.panel > .sample { margin-inline: 0.4rem; }
}
@media print {
  :root { --page: #fff; --panel: #fff; }
  main { max-width: none; padding: 0; }
  .panel, figure { break-inside: avoid; }
}
"""
