// Draws the panels that `window.page` holds, with Grafana's own components, where its grid puts them; then writes down
// what was drawn, for the tests: each panel's place, and each line's name, colour and dashes.

import {
  applyFieldOverrides, createTheme, dateTime, EventBusSrv, FieldConfigOptionsRegistry, FieldType, getFieldDisplayName,
  getFieldDisplayValues, getFieldSeriesColor, toDataFrame,
} from "@grafana/data";
import { BigValue, GlobalStyles, PanelChrome, PanelContextProvider, ThemeContext, TimeSeries, VizRepeater } from "@grafana/ui";
import { createRoot } from "react-dom/client";
import "uplot/dist/uPlot.min.css";

const { width, from, to, panels, theme: mode } = window.page;
const theme = createTheme({ colors: { mode } });
const GAP = 8, CELL = 30;  // Grafana's own
const drawn = [];

// The parts of a field's configuration that dashboards of ours set; any other in one is an error.
const known = [
  "color", "unit", "min", "max", "decimals", "noValue",
  ...["lineWidth", "fillOpacity", "stacking", "axisSoftMin", "axisSoftMax", "lineStyle"].map((name) => `custom.${name}`),
];
const registry = new FieldConfigOptionsRegistry(() => known.map((id) => ({
  id, path: id.replace("custom.", ""), name: id, isCustom: id.startsWith("custom."), settings: {}, editor: () => null,
  override: () => null, process: (value) => value, shouldApply: (field) => field.type !== FieldType.time,
})));

function framesOf(panel) {
  const plain = panel.frames.map(({ refId, name, labels, times, values }) => toDataFrame({
    refId,
    fields: [
      { name: "Time", type: FieldType.time, values: times },
      { name: "Value", type: FieldType.number, values, labels, config: { displayNameFromDS: name } },
    ],
  }));
  for (const { properties } of panel.fieldConfig.overrides) {
    for (const { id } of properties) registry.get(id);  // throws for what is not known
  }
  const color = { mode: panel.type === "stat" ? "thresholds" : "palette-classic" };
  const fieldConfig = { ...panel.fieldConfig, defaults: { color, ...panel.fieldConfig.defaults } };
  return applyFieldOverrides({
    data: plain, fieldConfig, fieldConfigRegistry: registry, replaceVariables: (text) => text, theme, timeZone: "utc",
  });
}

function Lines({ panel, frames, width, height }) {
  const timeRange = { from: dateTime(from), to: dateTime(to), raw: { from: "", to: "" } };
  return (
    <TimeSeries frames={frames} structureRev={1} width={width} height={height} timeRange={timeRange} timeZone="utc"
      legend={panel.options.legend} options={panel.options} />
  );
}

function Numbers({ panel, frames, width, height }) {
  const fieldConfig = panel.fieldConfig;
  const getValues = () => getFieldDisplayValues({
    fieldConfig, reduceOptions: panel.options.reduceOptions, replaceVariables: (text) => text, theme, data: frames,
    timeZone: "utc",
  });
  const one = ({ value, width, height, count }) => (
    <BigValue value={value.display} theme={theme} width={width} height={height} count={count}
      colorMode={panel.options.colorMode} graphMode={panel.options.graphMode} textMode={panel.options.textMode} />
  );
  return (
    <VizRepeater getValues={getValues} renderValue={one} width={width} height={height} source={frames} renderCounter={1}
      orientation={panel.options.orientation} autoGrid />
  );
}

function Panel({ panel }) {
  const { x, y, w, h } = panel.gridPos;
  const column = (width + GAP) / 24;
  const box = { left: x * column, top: y * (CELL + GAP), width: w * column - GAP, height: h * (CELL + GAP) - GAP };
  const style = { position: "absolute", ...box };
  if (panel.type === "row") return <h4 style={{ ...style, margin: 0, paddingTop: 6 }}>⌄ {panel.title}</h4>;
  const frames = framesOf(panel);
  const lines = frames.map((frame) => frame.fields[1]).map((field, index) => ({
    name: getFieldDisplayName(field, frames[index], frames), color: getFieldSeriesColor(field, theme).color,
    dash: field.config.custom?.lineStyle?.fill ?? "solid",
  }));
  drawn.push({ title: panel.title, type: panel.type, box, lines });
  const Inside = panel.type === "stat" ? Numbers : Lines;
  return (
    <div style={style}>
      <PanelChrome title={panel.title} description={panel.description} width={box.width} height={box.height}>
        {(width, height) => (frames.length
          ? <Inside panel={panel} frames={frames} width={width} height={height} />
          : <div>No data</div>)}
      </PanelChrome>
    </div>
  );
}

const context = { eventsScope: "", eventBus: new EventBusSrv() };
const bottom = Math.max(...panels.map(({ gridPos: { y, h } }) => (y + h) * (CELL + GAP)));
const root = document.getElementById("root");
Object.assign(root.style, { position: "relative", width: `${width}px`, height: `${bottom}px` });
document.body.style.cssText =
  `margin: 16px; background: ${theme.colors.background.canvas}; color: ${theme.colors.text.primary};`
  + ` font: 14px ${theme.typography.fontFamily}`;
createRoot(root).render(
  <ThemeContext.Provider value={theme}>
    <GlobalStyles />
    <PanelContextProvider value={context}>
      {panels.map((panel, index) => <Panel key={index} panel={panel} />)}
    </PanelContextProvider>
  </ThemeContext.Provider>,
);
setTimeout(() => {
  const facts = document.createElement("script");
  Object.assign(facts, { type: "application/json", id: "drawn", textContent: JSON.stringify(drawn) });
  document.body.append(facts);
}, 1000);
