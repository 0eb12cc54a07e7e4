"""The frame and the style of the report's page; no script, and nothing from the network."""

from __future__ import annotations

from string import Template

PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")

STYLE = """\
:root {
  --paper: #ffffff; --ink: #1b2026; --soft: #57606a; --line: #d5dae0; --tint: #f3f6f9;
  --mark: #0067a3; --good: #1a7f4b; --bad: #b3261e; --warn-paper: #fff1d6; --warn-ink: #6b4300;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181d; --ink: #e4e8ec; --soft: #9aa5b1; --line: #343c45; --tint: #1c2229;
    --mark: #6cbcf0; --good: #5fcf97; --bad: #ff8a80; --warn-paper: #3d2c07; --warn-ink: #ffdc9a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
}
main { max-width: 1140px; margin: 0 auto; padding: 28px 20px 64px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 10px; letter-spacing: -0.01em; }
h2 { font-size: 1.2rem; margin: 48px 0 10px; }
h3 { font-size: 1rem; margin: 10px 0 4px; }
p { margin: 0 0 12px; max-width: 72ch; }
.soft, figcaption { color: var(--soft); font-size: 0.9rem; }
.smoke {
  background: var(--warn-paper); color: var(--warn-ink); border-radius: 6px; padding: 10px 14px;
  margin: 0 0 18px; font-weight: 600; max-width: none;
}

.sheet { list-style: none; margin: 0; padding: 0; }
.sheet li, .heads {
  display: grid; grid-template-columns: minmax(0, 1fr) repeat(var(--samplers), var(--wide)); gap: 6px;
  max-width: 1000px;
}
.sheet li { align-items: center; margin-bottom: 6px; }
.sheet p { margin: 0; padding-right: 14px; line-height: 1.4; font-size: 0.95rem; }
.sheet img {
  display: block; width: var(--wide); height: auto; image-rendering: var(--rendering); border-radius: 2px;
}
.heads {
  position: sticky; top: 0; z-index: 1; background: var(--paper); padding: 8px 0 6px; align-items: end;
  font-size: 0.85rem; line-height: 1.25; font-weight: 600;
}
.heads .student { color: var(--mark); }

.scroll { overflow-x: auto; margin: 0 0 8px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.93rem; width: 100%; }
th, td { padding: 8px 9px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th {
  vertical-align: bottom; font-size: 0.82rem; line-height: 1.25; color: var(--soft); white-space: normal;
}
th:first-child, td:first-child { text-align: left; }
tbody th { font-weight: 500; position: sticky; left: 0; background: var(--paper); }
tr.student th, tr.student td { background: var(--tint); font-weight: 650; }
td small { display: block; color: var(--soft); font-size: 0.8rem; font-weight: 400; }

.checks { list-style: none; margin: 0; padding: 0; }
.checks li {
  display: grid; grid-template-columns: 5.2em minmax(0, 1fr); gap: 0 8px; padding: 8px 0;
  border-bottom: 1px solid var(--line); max-width: 760px;
}
.checks b.met { color: var(--good); }
.checks b.missed { color: var(--bad); }

dl.notes { margin: 14px 0 0; display: grid; grid-template-columns: 11em minmax(0, 1fr); gap: 8px 18px; }
dl.notes dt { font-weight: 600; }
dl.notes dd { margin: 0; max-width: 68ch; }

.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(270px, 1fr)); gap: 14px 18px; }
figure { margin: 0; }
.charts img, .plot img { display: block; width: 100%; height: auto; }
.plot { max-width: 760px; margin-bottom: 18px; }
.plot img { background: #ffffff; border-radius: 6px; }
.panel {
  display: grid; grid-template-columns: 7.5em minmax(0, max-content); gap: 0 10px; margin-bottom: 6px;
}
.panel ul { list-style: none; margin: 0; padding: 0; display: flex; flex-direction: column; }
.panel li { flex: 1; display: flex; align-items: center; font-size: 0.85rem; line-height: 1.2; }
.panel img { display: block; max-width: 100%; height: auto; image-rendering: pixelated; }
figure:has(.panel) { margin-bottom: 20px; }

details { margin: 10px 0; }
summary { cursor: pointer; color: var(--mark); font-weight: 600; padding: 4px 0; }
pre {
  background: var(--tint); border-radius: 6px; padding: 12px 14px; overflow-x: auto; font-size: 0.85rem;
  line-height: 1.45; font-family: ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace;
}
.narrow { max-width: 560px; }

@media (max-width: 900px) {
  .sheet li, .heads { grid-template-columns: repeat(var(--samplers), var(--small)); gap: 4px 5px; }
  .sheet li { margin-bottom: 12px; }
  .sheet p { grid-column: 1 / -1; padding: 0; }
  .sheet img { width: var(--small); }
  .heads span:first-child { display: none; }
  .heads { font-size: 0.68rem; line-height: 1.2; overflow-wrap: anywhere; }
  dl.notes { grid-template-columns: minmax(0, 1fr); gap: 2px 0; }
  dl.notes dd { margin-bottom: 10px; }
}
@media (max-width: 480px) {
  main { padding: 18px 12px 48px; }
  h1 { font-size: 1.4rem; }
  th, td { padding: 8px 7px; }
  tbody th { white-space: normal; max-width: 9.5em; line-height: 1.3; }
  .narrow tbody th { max-width: none; }
  .panel { grid-template-columns: 4.4em minmax(0, max-content); gap: 0 6px; }
  .panel li { font-size: 0.68rem; }
}
"""
