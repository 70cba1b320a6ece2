{{- /* Names, and what several templates have to agree on. */ -}}

{{- define "mooring.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "mooring.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "mooring.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "mooring.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "mooring.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "mooring.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "mooring.selectorLabels" -}}
app.kubernetes.io/name: {{ include "mooring.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "mooring.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "mooring.selectorLabels" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- /* The image: one text, as in the Go provisioner's chart, or its parts. */ -}}
{{- define "mooring.image" -}}
{{- if kindIs "string" .Values.image -}}
{{- tpl .Values.image . -}}
{{- else -}}
{{- $image := default dict .Values.image -}}
{{- printf "%s:%s" (default "mooring" $image.repository) (default .Chart.AppVersion $image.tag | toString) -}}
{{- end -}}
{{- end -}}

{{- define "mooring.imagePullPolicy" -}}
{{- $parts := dict -}}
{{- if kindIs "map" .Values.image -}}{{- $parts = .Values.image -}}{{- end -}}
{{- default (default "" $parts.pullPolicy) .Values.imagePullPolicy -}}
{{- end -}}

{{- /* "true" when the API server has ValidatingAdmissionPolicies, or the values say so. */ -}}
{{- define "mooring.hasPolicies" -}}
{{- if eq (toString .Values.admissionPolicy.enabled) "auto" -}}
{{- semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version -}}
{{- else -}}
{{- .Values.admissionPolicy.enabled -}}
{{- end -}}
{{- end -}}

{{- /* Whether the affinity of a new PV has to name the agent's own node and no other. */ -}}
{{- define "mooring.hostNamesAreNodeNames" -}}
{{- $are := .Values.admissionPolicy.hostNamesAreNodeNames -}}
{{- range .Values.classes -}}
{{- if .selector -}}{{- $are = false -}}{{- end -}}
{{- end -}}
{{- $are -}}
{{- end -}}

{{- /* "true" when the values say that block devices can be in a directory. */ -}}
{{- define "mooring.hasDevices" -}}
{{- $has := .Values.useJobForCleaning -}}
{{- range .Values.classes -}}
{{- if or (eq (default "" .volumeMode) "Block") .fsType .blockCleanerCommand .wipe (hasPrefix "/dev/" (printf "%s/" .hostDir)) -}}
{{- $has = true -}}
{{- end -}}
{{- end -}}
{{- $has -}}
{{- end -}}

{{- /* block or filesystem. */ -}}
{{- define "mooring.profile" -}}
{{- $profile := .Values.securityProfile -}}
{{- if eq $profile "auto" -}}
{{- if kindIs "bool" .Values.privileged -}}
{{- $profile = ternary "block" "filesystem" .Values.privileged -}}
{{- else -}}
{{- $profile = "block" -}}
{{- end -}}
{{- end -}}
{{- if eq $profile "filesystem" -}}
{{- range .Values.classes -}}
{{- if eq (default "" .volumeMode) "Block" -}}
{{- fail (printf "classes: %s has volumeMode Block, and securityProfile filesystem (or privileged: false) can open no block device" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $profile -}}
{{- end -}}

{{- define "mooring.mountsDev" -}}
{{- if kindIs "bool" .Values.mountDevVolume -}}
{{- .Values.mountDevVolume -}}
{{- else -}}
{{- eq (include "mooring.profile" .) "block" -}}
{{- end -}}
{{- end -}}

{{- /* The container's security context by profile, with the values' own laid over it. */ -}}
{{- define "mooring.securityContext" -}}
{{- $context := dict "runAsUser" 0 "readOnlyRootFilesystem" true -}}
{{- if eq (include "mooring.profile" .) "block" -}}
{{- $_ := set $context "privileged" true -}}
{{- else -}}
{{- $_ := set $context "privileged" false -}}
{{- $_ := set $context "allowPrivilegeEscalation" false -}}
{{- $_ := set $context "seccompProfile" (dict "type" "RuntimeDefault") -}}
{{- $_ := set $context "capabilities" (dict "drop" (list "ALL") "add" (include "mooring.capabilities" . | fromYamlArray)) -}}
{{- end -}}
{{- toYaml (mergeOverwrite $context (deepCopy .Values.securityContext)) -}}
{{- end -}}

{{- /* What emptying other tenants' directories takes. */ -}}
{{- define "mooring.capabilities" -}}
- CHOWN
- DAC_OVERRIDE
- FOWNER
- FSETID
- LINUX_IMMUTABLE
- SETFCAP
{{- end -}}

{{- /* The discovery directories, in the order of their mountDirs: each once, and none that /dev shows anyway. */ -}}
{{- define "mooring.directories" -}}
{{- $hosts := dict -}}
{{- $devIsThere := eq (include "mooring.mountsDev" .) "true" -}}
{{- range concat .Values.classes (default list .Values.formerDirectories) -}}
{{- $host := clean .hostDir -}}
{{- $mount := clean (default .hostDir .mountDir) -}}
{{- if and (hasKey $hosts $mount) (ne (get $hosts $mount) $host) -}}
{{- fail (printf "classes: %s shows %s at the mountDir %s, where another class shows %s" (default "formerDirectories" .name) $host $mount (get $hosts $mount)) -}}
{{- end -}}
{{- if not (and $devIsThere (eq $host $mount) (hasPrefix "/dev/" (printf "%s/" $host))) -}}
{{- $_ := set $hosts $mount $host -}}
{{- end -}}
{{- end -}}
{{- range $mount := keys $hosts | sortAlpha }}
{{- $host := get $hosts $mount }}
- hostDir: {{ $host | quote }}
  mountDir: {{ $mount | quote }}
  volume: {{ include "mooring.volumeName" $host }}
{{- end -}}
{{- end -}}

{{- /* A volume's name by its path: another order of classes must not change the pods. */ -}}
{{- define "mooring.volumeName" -}}
{{- $name := . | trimPrefix "/" | replace "/" "--" -}}
{{- if and (regexMatch "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$" $name) (le (len $name) 57) (not (regexMatch "-[-/]|/-" .)) -}}
dir--{{ $name }}
{{- else -}}
dir--{{ sha256sum . | trunc 16 }}
{{- end -}}
{{- end -}}

{{- /* Text that stays text in YAML, of a value that may have been read as something else. */ -}}
{{- define "mooring.text" -}}
{{- if kindIs "string" . -}}{{- . -}}{{- else -}}{{- toJson . -}}{{- end -}}
{{- end -}}

{{- /* A map whose values are texts, whatever YAML has read them as. */ -}}
{{- define "mooring.texts" -}}
{{- range $key, $value := . }}
{{ $key | quote }}: {{ include "mooring.text" $value | quote }}
{{- end -}}
{{- end -}}
