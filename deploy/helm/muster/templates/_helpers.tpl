{{/* Labels of an object of one component; the argument is (list $ "component"), or (list $ ""). */}}
{{- define "muster.labels" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
app.kubernetes.io/name: muster
{{- if $component }}
app.kubernetes.io/component: {{ $component }}
{{- end }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{/* Labels that select the pods of a component; they never change between versions. */}}
{{- define "muster.selector" -}}
app.kubernetes.io/name: muster
app.kubernetes.io/component: {{ . }}
{{- end -}}

{{/* A file of this chart with the release's namespace in place of muster-system. */}}
{{- define "muster.file" -}}
{{- $root := index . 0 -}}
{{- $root.Files.Get (index . 1) | replace "muster-system" $root.Release.Namespace -}}
{{- end -}}

{{/* Version of the cluster without what a vendor adds: v1.36.3 for v1.36.3-gke.12. */}}
{{- define "muster.clusterVersion" -}}
{{- regexFind "^v[0-9]+\\.[0-9]+\\.[0-9]+" .Capabilities.KubeVersion.Version -}}
{{- end -}}

{{/* Muster's configuration file. */}}
{{- define "muster.config" -}}
{{- $lease := dict "namespace" .Release.Namespace "name" "muster-scheduler" -}}
{{- $config := deepCopy .Values.config -}}
{{- $_ := set $config "lease" (merge $lease (default (dict) $config.lease)) -}}
{{- $account := printf "system:serviceaccount:%s:muster-agent" .Release.Namespace -}}
{{- $_ := set $config "agents" (merge (dict "serviceAccount" $account) (default (dict) $config.agents)) -}}
{{- toYaml $config -}}
{{- end -}}
