// What a dashboard may hold, as Grafana's own types say it, for literals of JSON: their enumerations are plain texts.

import type { Dashboard as Strict } from "@grafana/schema/dist/esm/raw/dashboard/x/dashboard_types.gen";

type Plain<T> = T extends string ? string
  : T extends number ? number
  : T extends object ? { [Key in keyof T]: Plain<T[Key]> }
  : T;

export type Dashboard = Plain<Strict>;
