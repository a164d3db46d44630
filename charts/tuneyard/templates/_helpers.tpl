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

{{/* "true" where gateways take TLS, and where clients have nothing else. */}}
{{- define "tuneyard.tls" -}}
{{- if dig "tls" "enabled" false .Values.gateway }}true{{ end -}}
{{- end }}

{{- define "tuneyard.tlsOnly" -}}
{{- if and (include "tuneyard.tls" .) (not (dig "tls" "plain" true .Values.gateway)) }}true{{ end -}}
{{- end }}

{{/* The gateways' Service, by the port that an Ingress or a route of the same cluster uses. */}}
{{- define "tuneyard.backendPort" -}}
{{- if include "tuneyard.tlsOnly" . }}{{ dig "service" "tlsPort" 443 .Values.gateway }}{{ else }}{{ .Values.gateway.service.port }}{{ end -}}
{{- end }}

{{- define "tuneyard.serviceUrl" -}}
{{- printf "%s://tuneyard-gateway.%s.svc:%s" (ternary "https" "http" (eq (include "tuneyard.tlsOnly" .) "true")) .Release.Namespace (include "tuneyard.backendPort" .) -}}
{{- end }}

{{- define "tuneyard.ingressUrl" -}}
{{- with .Values.gateway.ingress -}}
{{- if and .enabled .host }}{{ ternary "https" "http" (not (empty (.tls | default dict).secretName)) }}://{{ .host }}{{ end -}}
{{- end -}}
{{- end }}

{{- define "tuneyard.gatewayUrl" -}}
{{- .Values.gatewayUrl | default (include "tuneyard.ingressUrl" .) | default (include "tuneyard.serviceUrl" .) | trimSuffix "/" -}}
{{- end }}

{{/* What gates ask: plain HTTP, which has a Service of its own where clients have none. */}}
{{- define "tuneyard.gatesUrl" -}}
{{- if include "tuneyard.tlsOnly" . }}{{ printf "http://tuneyard-gateway-gates.%s.svc:8080" .Release.Namespace }}{{ else }}{{ include "tuneyard.serviceUrl" . }}{{ end -}}
{{- end }}

{{- define "tuneyard.masterSecret" -}}
{{- .Values.masterSecret.existing | default "tuneyard-master" -}}
{{- end }}

{{- define "tuneyard.authMode" -}}
{{- ((.Values.gateway).auth).mode | default "None" -}}
{{- end }}

{{/* Whether clients must say who they are, in any way; by keys; by tokens. */}}
{{- define "tuneyard.tenants" -}}
{{- if ne (include "tuneyard.authMode" .) "None" -}}true{{- end -}}
{{- end }}

{{- define "tuneyard.apiKeys" -}}
{{- if has (include "tuneyard.authMode" .) (list "ApiKeys" "ApiKeysAndJwt") -}}true{{- end -}}
{{- end }}

{{- define "tuneyard.tokens" -}}
{{- if has (include "tuneyard.authMode" .) (list "Jwt" "ApiKeysAndJwt") -}}
{{- $jwt := .Values.gateway.auth.jwt -}}
{{- if ne 1 (len (compact (list $jwt.jwksUri $jwt.jwks $jwt.jwksConfigMap))) -}}
{{- fail "gateway.auth.jwt needs one of jwksUri, jwks and jwksConfigMap: without signing keys no token can be proven" -}}
{{- end -}}
true
{{- end -}}
{{- end }}

{{- define "tuneyard.tokenEnvironment" -}}
{{- if include "tuneyard.tokens" . -}}
{{- $jwt := .Values.gateway.auth.jwt -}}
- {name: TUNEYARD_JWT_ISSUER, value: {{ $jwt.issuer | quote }}}
- {name: TUNEYARD_JWT_AUDIENCES, value: {{ $jwt.audiences | toJson | quote }}}
- {name: TUNEYARD_JWT_CLAIM, value: {{ $jwt.tenantClaim | default "tenant" | quote }}}
{{- if $jwt.jwksUri }}
- {name: TUNEYARD_JWT_JWKS_URI, value: {{ $jwt.jwksUri | quote }}}
{{- if $jwt.caConfigMap }}
- {name: TUNEYARD_JWT_CA, value: /etc/tuneyard-jwks-ca/ca.crt}
{{- end }}
{{- else }}
- {name: TUNEYARD_JWT_JWKS_FILE, value: /etc/tuneyard-jwks/jwks.json}
{{- end }}
{{- end -}}
{{- end }}

{{- define "tuneyard.priorityEnvironment" -}}
{{- $given := .Values.gateway.priorities | default dict -}}
{{- if $given.requestsPerPod -}}
{{- if not (include "tuneyard.tenants" .) -}}
{{- fail "gateway.priorities needs gateway.auth.mode: without tenants nobody has a priority" -}}
{{- end -}}
{{- $shares := $given.shares | default dict -}}
{{- $low := $shares.Low | default 70 | int -}}
{{- $normal := $shares.Normal | default 90 | int -}}
{{- $high := $shares.High | default 100 | int -}}
{{- if or (gt $low $normal) (gt $normal $high) -}}
{{- fail "gateway.priorities.shares: Low may fill no more than Normal, and that no more than High" -}}
{{- end -}}
{{- $shares = dict "Low" $low "Normal" $normal "High" $high -}}
{{- $limits := dict "requestsPerPod" ($given.requestsPerPod | int) "pools" ($given.pools | default dict) "shares" $shares -}}
- {name: TUNEYARD_PRIORITIES, value: {{ $limits | toJson | quote }}}
{{- end -}}
{{- end }}

{{- define "tuneyard.tenantsNamespace" -}}
{{- $name := ((.Values.gateway).auth).namespace | default (printf "%s-tenants" .Release.Namespace) -}}
{{- if eq $name .Release.Namespace -}}
{{- fail "gateway.auth.namespace must not be the release's: gateways may read all Secrets of it" -}}
{{- end -}}
{{- $name -}}
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

{{- define "tuneyard.usage" -}}
{{- if dig "enabled" true (.Values.usage | default dict) -}}true{{- end -}}
{{- end }}

{{- define "tuneyard.usageEnvironment" -}}
- {name: TUNEYARD_LOG_DIRECTORY, value: /run/tuneyard-log}
{{- if not (include "tuneyard.usage" .) }}
- {name: TUNEYARD_USAGE, value: "false"}
{{- end -}}
{{- end }}

{{- define "tuneyard.tlsEnvironment" -}}
{{- if include "tuneyard.tls" . -}}
- {name: TUNEYARD_TLS_CERTIFICATE, value: /etc/tuneyard-tls}
- {name: TUNEYARD_TLS_SECRET, value: {{ .Values.gateway.tls.secretName | quote }}}
- {name: TUNEYARD_TLS_MIN_VERSION, value: {{ dig "tls" "minVersion" "1.2" .Values.gateway | quote }}}
- {name: TUNEYARD_TLS_PLAIN, value: {{ dig "tls" "plain" true .Values.gateway | quote }}}
{{- if .Values.gateway.tls.clientCaConfigMap }}
- {name: TUNEYARD_TLS_CLIENT_CA, value: /etc/tuneyard-client-ca}
{{- end }}
{{- end -}}
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
  {{- if .Values.images.llamaCpp }}
  llamaCpp: {{ include "tuneyard.image" (dict "root" . "name" "llamaCpp") | quote }}
  {{- end }}
  {{- if .Values.images.buildTools }}
  buildTools: {{ include "tuneyard.image" (dict "root" . "name" "buildTools") | quote }}
  {{- end }}
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
gpuMemory: {{ .Values.gpuMemory | default "" | quote }}
hubEndpoint: {{ .Values.hubEndpoint | default "" | quote }}
gatewayUrl: {{ include "tuneyard.gatewayUrl" . | quote }}
gatewayService: {{ include "tuneyard.gatesUrl" . | quote }}
leaderWorkerSets: {{ (.Values.leaderWorkerSets | default dict).enabled | default false }}
podTls: {{ (.Values.podTls | default dict).enabled | default false }}
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
