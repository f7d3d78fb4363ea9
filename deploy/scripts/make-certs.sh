#!/bin/sh
# Makes the certificates that Muster needs and prints them as Kubernetes objects:
#   Secret    muster-tls                 what Muster's server shows, and whom it believes
#   Secret    muster-kube-scheduler-tls  what kube-scheduler shows to the extender
#   ConfigMap muster-ca                  whom the agents believe
# The authority's own key stays in the output folder: keep it, or delete it and make all anew next
# time. An authority that is already in the folder is used again.
#
# usage: make-certs.sh [--namespace NAME] [--days N] [--out FOLDER] | kubectl apply -f -
set -eu

namespace=muster-system
days=365
out=

usage() {
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

while [ $# -gt 0 ]; do
  case "$1" in
    --namespace | --days | --out) [ $# -ge 2 ] || usage ;;
  esac
  case "$1" in
    --namespace) namespace=$2; shift 2 ;;
    --days) days=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    *) usage ;;
  esac
done
case "$days" in
  '' | 0* | *[!0-9]* | ?????*) echo "make-certs.sh: --days is \"$days\": a whole number of days, 1 to 9999" >&2; exit 2 ;;
esac
case "$namespace" in
  '' | *[!a-z0-9-]*) echo "make-certs.sh: --namespace is \"$namespace\": small letters, digits and dashes" >&2; exit 2 ;;
esac
command -v openssl >/dev/null || { echo "make-certs.sh: openssl is not installed" >&2; exit 1; }

umask 077
if [ -z "$out" ]; then
  out=$(mktemp -d)
  trap 'rm -rf "$out"' EXIT
fi
mkdir -p "$out"

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1" 2>/dev/null; }

if [ ! -s "$out/ca.key" ] || [ ! -s "$out/ca.crt" ]; then
  key "$out/ca.key"
  openssl req -x509 -new -key "$out/ca.key" -sha256 -days 3650 -subj "/CN=muster-ca" \
    -addext "basicConstraints=critical,CA:TRUE,pathlen:0" \
    -addext "keyUsage=critical,keyCertSign,cRLSign" -out "$out/ca.crt"
fi

# certificate NAME USAGE [ALTERNATIVE NAMES]
certificate() {
  key "$out/$1.key"
  openssl req -new -key "$out/$1.key" -subj "/CN=$1" -out "$out/$1.csr"
  {
    echo "basicConstraints=critical,CA:FALSE"
    echo "keyUsage=critical,digitalSignature"
    echo "extendedKeyUsage=$2"
    if [ $# -ge 3 ]; then echo "subjectAltName=$3"; fi
  } >"$out/$1.ext"
  openssl x509 -req -in "$out/$1.csr" -CA "$out/ca.crt" -CAkey "$out/ca.key" -CAcreateserial \
    -sha256 -days "$days" -extfile "$out/$1.ext" -out "$out/$1.crt" 2>/dev/null
  rm -f "$out/$1.csr" "$out/$1.ext"
}

agents=muster-agents.$namespace.svc
certificate muster-scheduler serverAuth \
  "DNS:localhost,DNS:$agents,DNS:$agents.cluster.local,IP:127.0.0.1"
certificate muster-kube-scheduler clientAuth "DNS:muster-kube-scheduler"

encoded() { openssl base64 -A -in "$1"; }

secret() {
  cat <<YAML
apiVersion: v1
kind: Secret
metadata:
  name: $1
  namespace: $namespace
  labels:
    app.kubernetes.io/name: muster
type: kubernetes.io/tls
data:
  ca.crt: $(encoded "$out/ca.crt")
  tls.crt: $(encoded "$out/$2.crt")
  tls.key: $(encoded "$out/$2.key")
---
YAML
}

secret muster-tls muster-scheduler
secret muster-kube-scheduler-tls muster-kube-scheduler
cat <<YAML
apiVersion: v1
kind: ConfigMap
metadata:
  name: muster-ca
  namespace: $namespace
  labels:
    app.kubernetes.io/name: muster
data:
  ca.crt: |
$(sed 's/^/    /' "$out/ca.crt")
YAML
