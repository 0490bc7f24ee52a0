{{- /* weft.labels: (dict "root" $ "component" "agent") → the recommended labels. */ -}}
{{- define "weft.labels" -}}
app.kubernetes.io/name: weft
app.kubernetes.io/instance: weft
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
app.kubernetes.io/part-of: weft
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Values.managedBy | default .root.Release.Service }}
{{- end -}}

{{- /* weft.selector: never changes, so that every upgrade is one. */ -}}
{{- define "weft.selector" -}}
app.kubernetes.io/name: weft
app.kubernetes.io/component: {{ . }}
{{- end -}}

{{- /* weft.hook: WEIGHT → annotations of what is there only before the release is deleted. Kept when it failed, to be looked at. */ -}}
{{- define "weft.hook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{- define "weft.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end -}}
{{- end -}}
{{- end -}}

{{- /* weft.config: the AgentConfig document. */ -}}
{{- define "weft.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- if .Values.jaeger.enabled -}}
{{- $tracing := dict "tracing" (dict "endpoint" "http://jaeger.weft-system.svc.cluster.local:4317") -}}
{{- $config = merge $config $tracing -}}
{{- end -}}
{{- merge (dict "apiVersion" "weft.dev/v1alpha1" "kind" "AgentConfig" "metadata" (dict "name" "weft")) $config | toYaml -}}
{{- end -}}
