{{- /* Release name, with the chart's name where the release's does not hold it already. */}}
{{- define "sftjob.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "sftjob.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "sftjob.labels" -}}
{{ include "sftjob.selectorLabels" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: sftjob
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "sftjob.image" -}}
{{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
{{- end }}

{{- define "sftjob.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* Not those of the operator's pods, whom Deployment, disruption budget and policies select by. */}}
{{- define "sftjob.testLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-test
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: sftjob
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "sftjob.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "sftjob.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.create is false: set serviceAccount.name to one that exists" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{- define "sftjob.subjects" -}}
subjects:
  - kind: ServiceAccount
    name: {{ include "sftjob.serviceAccountName" . }}
    namespace: {{ .Release.Namespace }}
{{- end }}

{{- /* What the operator does in the namespaces of SFTJobs: every verb here is one that its code uses. */}}
{{- define "sftjob.rules" -}}
- apiGroups: [sftjob.dev]
  resources: [sftjobs]
  verbs: [get, list, watch, delete] # delete: ttlSecondsAfterFinished
- apiGroups: [sftjob.dev]
  resources: [sftjobs/status]
  verbs: [patch]
# Children carry blockOwnerDeletion; clusters that check owner references (OpenShift) ask for this.
- apiGroups: [sftjob.dev]
  resources: [sftjobs/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, delete]
# Server-side apply: create the first time, patch from then on.
- apiGroups: [""]
  resources: [services]
  verbs: [get, create, patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [list]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, create] # create: spec.workspace.claimTemplate
{{- if .Values.rbac.readSecrets }}
# Only whether a Secret named in an SFTJob exists: the operator asks for its metadata, never for its content.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
{{- end }}
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end }}

{{- define "sftjob.trainingLabels" -}}
app.kubernetes.io/managed-by: sftjob-operator
sftjob.dev/role: train
{{- end }}

{{- /* 5353 is what OpenShift's DNS pods listen on: a policy sees the port behind the Service. */}}
{{- define "sftjob.dns" -}}
- ports:
    {{- range $port := list 53 5353 }}
    - port: {{ $port }}
      protocol: UDP
    - port: {{ $port }}
      protocol: TCP
    {{- end }}
{{- end }}

{{- /* Fails where the cluster does not know a kind of Prometheus' operator: an object that nobody reads is no monitoring. */}}
{{- define "sftjob.requireMonitoring" -}}
{{- if not (.root.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" .kind)) -}}
{{- fail (printf "%s is true, and this cluster does not know %s of monitoring.coreos.com/v1: install Prometheus' operator first, or set it to false (the pods carry prometheus.io annotations all the same). With helm template: --api-versions monitoring.coreos.com/v1/%s" .value .kind .kind) -}}
{{- end -}}
{{- end }}
