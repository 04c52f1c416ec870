{{- define "pipelinejob.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- /* A Service's name has at most 63 characters, and the longest here ends in -metrics. A release's has at most 53, so two never end up alike. */ -}}
{{- define "pipelinejob.fullname" -}}
{{- $name := include "pipelinejob.name" . }}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 55 | trimSuffix "-" }}{{ else if contains $name .Release.Name }}{{ .Release.Name | trunc 55 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name $name | trunc 55 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- /* Of what stands in no namespace: an operator of some namespaces has neighbours, which may well have its name. */ -}}
{{- define "pipelinejob.clusterName" -}}
{{- if .Values.watchNamespaces }}{{ printf "%s.%s" .Release.Namespace (include "pipelinejob.fullname" .) }}{{ else }}{{ include "pipelinejob.fullname" . }}{{ end }}
{{- end }}

{{- define "pipelinejob.selectorLabels" -}}
app.kubernetes.io/name: {{ include "pipelinejob.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "pipelinejob.labels" -}}
{{ include "pipelinejob.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "pipelinejob.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "pipelinejob.fullname" .) }}{{ else }}{{ required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{- /* image: dict "image" <values> "root" $ */ -}}
{{- define "pipelinejob.image" -}}
{{- $registry := (.root.Values.global).imageRegistry | default .image.registry }}
{{- with $registry }}{{ trimSuffix "/" . }}/{{ end }}{{ .image.repository }}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "pipelinejob.imagePullSecrets" -}}
{{- with concat (.Values.imagePullSecrets | default list) ((.Values.global).imagePullSecrets | default list) }}
imagePullSecrets:
{{- range . }}
  - name: {{ if kindIs "map" . }}{{ .name }}{{ else }}{{ . }}{{ end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* served: dict "enabled" true|false|"auto" "root" $ "api" "group/version/Kind"; renders "true" or nothing */ -}}
{{- define "pipelinejob.served" -}}
{{- if or (eq (toString .enabled) "true") (and (eq (toString .enabled) "auto") (.root.Capabilities.APIVersions.Has .api)) }}true{{ end }}
{{- end }}

{{- /* Every verb here is used; none lets the operator read secrets, enter a container, or hand out rights. */ -}}
{{- define "pipelinejob.namespacedRules" -}}
- apiGroups: [pipelinejob.io]
  resources: [pipelinejobs]
  verbs: [get, list, watch, create, patch, delete] # chains of a job that serves; delete: ttlSecondsAfterFinished, too
- apiGroups: [pipelinejob.io]
  resources: [pipelinejobs/finalizers] # what it makes holds up its job's deletion; OpenShift asks for this right
  verbs: [update]
- apiGroups: [pipelinejob.io]
  resources: [pipelinejobs/status]
  verbs: [patch, update]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, patch, delete] # get, here and below: whose it is that has a needed name
- apiGroups: [""]
  resources: [services, configmaps] # seen by label, put back when somebody deletes one; spec.costs names one
  verbs: [get, list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets] # one for each job that serves
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get] # those that a job's pods mount, and below their volumes: on which nodes can they be reached?
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [list, create, patch] # list: those of a stage's pod that does not come up
{{- if .Values.kueue.enabled }}
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [get, list, watch, create, patch, delete] # one for each job with a queue
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads/status]
  verbs: [patch] # quota is handed over, the end is told
{{- end }}
{{- if .Values.provisioning.enabled }}
- apiGroups: [autoscaling.x-k8s.io]
  resources: [provisioningrequests]
  verbs: [get, list, watch, create, patch, delete] # one for each job that waits for nodes and wants such
- apiGroups: [""]
  resources: [podtemplates]
  verbs: [get, list, watch, create, patch] # they go with their request
{{- end }}
{{- end }}

{{- define "pipelinejob.clusterRules" -}}
- apiGroups: [""]
  resources: [nodes]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [persistentvolumes]
  verbs: [get]
- apiGroups: [scheduling.k8s.io]
  resources: [priorityclasses]
  verbs: [list, watch]
- apiGroups: [pipelinejob.io]
  resources: [topologyprofiles]
  verbs: [list, watch]
{{- if .Values.kueue.enabled }}
- apiGroups: [kueue.x-k8s.io]
  resources: [resourceflavors, workloadpriorityclasses]
  verbs: [list, watch]
{{- end }}
{{- end }}

{{- define "pipelinejob.subjects" -}}
- kind: ServiceAccount
  name: {{ include "pipelinejob.serviceAccountName" . }}
  namespace: {{ .Release.Namespace }}
{{- end }}
