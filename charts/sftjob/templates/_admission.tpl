{{- /* Defaults and the largest gpusPerNode of the API (api/v1alpha1.py; a test compares). */}}
{{- define "sftjob.api.nodes" -}}1{{- end }}
{{- define "sftjob.api.gpusPerNode" -}}1{{- end }}
{{- define "sftjob.api.mostGPUsPerNode" -}}64{{- end }}

{{- /* CEL: whether a text lies below an entry that ends in /, or is another entry, with any tag, digest or revision. */}}
{{- define "sftjob.isOneOf" -}}
{{- $text := .text }}{{- $tests := list "false" }}
{{- range .allowed }}
{{- if hasSuffix "/" . }}
{{- $tests = append $tests (printf "%s.startsWith(%s)" $text (toJson .)) }}
{{- else }}
{{- $tests = append $tests (printf "%s.matches(%s)" $text (toJson (printf "^%s([:@].*)?$" (regexQuoteMeta .)))) }}
{{- end }}
{{- end }}
{{- join " || " (rest $tests | default $tests) }}
{{- end }}

{{- define "sftjob.admissionBinding" }}
{{- $selector := deepCopy (.limits.namespaceSelector | default dict) }}
{{- if eq .root.Values.rbac.scope "namespaces" }}
{{- /* A release says nothing about the SFTJobs of others. */}}
{{- $ours := dict "key" "kubernetes.io/metadata.name" "operator" "In" "values" .root.Values.rbac.namespaces }}
{{- $_ := set $selector "matchExpressions" (append ($selector.matchExpressions | default list) $ours) }}
{{- end }}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ .name }}
  labels:
    {{- include "sftjob.labels" .root | nindent 4 }}
spec:
  policyName: {{ .name }}
  validationActions: {{ toJson .actions }}
  {{- with $selector }}
  matchResources:
    namespaceSelector:
      {{- toYaml . | nindent 6 }}
  {{- end }}
{{- end }}
