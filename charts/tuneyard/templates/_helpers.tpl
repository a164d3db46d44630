{{/* Names do not depend on the release: the admission policies and the operator know the accounts by name. */}}

{{- define "tuneyard.labels" -}}
app.kubernetes.io/name: tuneyard
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{- define "tuneyard.selector" -}}
app.kubernetes.io/name: tuneyard
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "tuneyard.image" -}}
{{- $image := index .root.Values.images .name -}}
{{- $image.ref | default (printf "%s:%s" $image.repository ($image.tag | default .root.Chart.AppVersion)) -}}
{{- end }}

{{- define "tuneyard.gatewayUrl" -}}
{{- .Values.gatewayUrl | default (printf "http://tuneyard-gateway.%s.svc:%v" .Release.Namespace .Values.gateway.service.port) | trimSuffix "/" -}}
{{- end }}

{{- define "tuneyard.masterSecret" -}}
{{- .Values.masterSecret.existing | default "tuneyard-master" -}}
{{- end }}

{{- define "tuneyard.authMode" -}}
{{- ((.Values.gateway).auth).mode | default "None" -}}
{{- end }}

{{- define "tuneyard.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "tuneyard.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "tuneyard.spread" -}}
topologySpreadConstraints:
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "tuneyard.selector" . | nindent 6 }}
  matchLabelKeys: [pod-template-hash]
{{- end }}

{{- define "tuneyard.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Optional: a gateway serves also while they are missing; the process says that it cannot write what it exports. */}}
{{- define "tuneyard.exportFiles" -}}
{{- with .export }}
{{- if and .bucket (or .secretName .caConfigMap) }}
- name: {{ $.what }}
  projected:
    defaultMode: 0440
    sources:
    {{- with .secretName }}
    - secret: {name: {{ . | quote }}, optional: true}
    {{- end }}
    {{- with .caConfigMap }}
    - configMap: {name: {{ . | quote }}, items: [{key: ca.crt, path: ca.crt}], optional: true}
    {{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Where the gateway process writes something: gateway/buckettarget.py. */}}
{{- define "tuneyard.exportEnvironment" -}}
{{- $name := printf "TUNEYARD_%s" (upper .what) }}
{{- with .export }}
{{- if .bucket }}
- {name: {{ $name }}_URI, value: {{ printf "s3://%s/%s" .bucket .prefix | quote }}}
{{- with .endpoint }}
- {name: {{ $name }}_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- with .region }}
- {name: {{ $name }}_REGION, value: {{ . | quote }}}
{{- end }}
{{- if .anonymous }}
- {name: {{ $name }}_ANONYMOUS, value: "true"}
{{- end }}
{{- with .secretName }}
- {name: {{ $name }}_SECRET, value: {{ . | quote }}}
{{- end }}
{{- if or .secretName .caConfigMap }}
- {name: {{ $name }}_CREDENTIALS, value: /etc/tuneyard-{{ $.what }}}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Optional: the operator runs while they are missing; checks then say what is. */}}
{{- define "tuneyard.prometheusFiles" -}}
{{- with .Values.prometheus }}
{{- if and .url (or .tokenSecret .caConfigMap) }}
- name: prometheus
  projected:
    defaultMode: 0440
    sources:
    {{- with .tokenSecret }}
    - secret: {name: {{ . | quote }}, items: [{key: token, path: token}], optional: true}
    {{- end }}
    {{- with .caConfigMap }}
    - configMap: {name: {{ . | quote }}, items: [{key: ca.crt, path: ca.crt}], optional: true}
    {{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Changes of the settings roll the pods: they are read once, at the start. */}}
{{- define "tuneyard.configChecksum" -}}
tuneyard.dev/config-checksum: {{ include "tuneyard.config" . | sha256sum }}
{{- end }}

{{/* Values that came later may be missing: `helm upgrade --reuse-values` has those of the release before, and no others. */}}
{{- define "tuneyard.config" -}}
tuneyardNamespace: {{ .Release.Namespace }}
images:
  tuneyard: {{ include "tuneyard.image" (dict "root" . "name" "tuneyard") | quote }}
  envoy: {{ include "tuneyard.image" (dict "root" . "name" "envoy") | quote }}
  vllm: {{ include "tuneyard.image" (dict "root" . "name" "vllm") | quote }}
imagePullPolicy: {{ .Values.imagePullPolicy }}
engineEnv:
  {{- range $name, $value := .Values.engineEnv }}
  {{ $name }}: {{ $value | toString | quote }}
  {{- else }} {}
  {{- end }}
modelPullSecrets: {{ toJson (.Values.modelPullSecrets | default list) }}
allowedHostPathPrefixes: {{ toJson .Values.allowedHostPathPrefixes }}
allowedCacheHostPaths: {{ toJson (.Values.allowedCacheHostPaths | default list) }}
agentServiceAccountAnnotations: {{ toJson (.Values.agentServiceAccountAnnotations | default dict) }}
agentMemoryLimit: {{ .Values.agentMemoryLimit | default "1Gi" | quote }}
hubEndpoint: {{ .Values.hubEndpoint | default "" | quote }}
gatewayUrl: {{ include "tuneyard.gatewayUrl" . | quote }}
gatewayService: {{ printf "http://tuneyard-gateway.%s.svc:%v" .Release.Namespace .Values.gateway.service.port | quote }}
{{- $prometheus := .Values.prometheus | default dict }}
prometheus:
  url: {{ $prometheus.url | default "" | quote }}
  tokenFile: {{ ternary "/etc/tuneyard-prometheus/token" "" (not (empty $prometheus.tokenSecret)) | quote }}
  caFile: {{ ternary "/etc/tuneyard-prometheus/ca.crt" "" (not (empty $prometheus.caConfigMap)) | quote }}
{{- $tracing := .Values.tracing | default dict }}
tracing:
  otlpEndpoint: {{ $tracing.otlpEndpoint | default "" | quote }}
  sampling: {{ dig "sampling" 1 $tracing }}
watchNamespaces: {{ toJson .Values.watchNamespaces }}
{{- end }}
