#!/bin/bash
# A TPU slice of @HOSTS@ hosts as Cloud TPU VMs, one process a host:  bash THIS_FILE
# Keep it running (tmux). Run again after the slice was taken away, it makes a new one, and the run resumes.
set -euo pipefail
tpu() { gcloud compute tpus tpu-vm "$@" --zone=@ZONE@; }

tpu describe @NAME@ >/dev/null 2>&1 ||
    tpu create @NAME@ --accelerator-type=@ACCELERATOR@ --version=@VERSION@

# The workdir has to be the same directory on all hosts: an NFS share (Filestore), mounted at /runs.
tpu ssh @NAME@ --worker=all --command='
    set -e
    sudo apt-get update -qq && sudo apt-get install -y -qq python3.11-venv nfs-common
    sudo mkdir -p /runs && { mountpoint -q /runs || sudo mount -t nfs @VOLUME@ /runs; }
    rm -rf polaris_jax'
git archive --prefix=polaris_jax/ HEAD >/tmp/@NAME@.tar
tpu scp /tmp/@NAME@.tar @NAME@: --worker=all
tpu ssh @NAME@ --worker=all --command='
    set -e
    tar xf @NAME@.tar && cd polaris_jax
    python3.11 -m venv .venv && .venv/bin/pip install --quiet -e ".[tpu]"'

# jax.distributed finds the other processes in the metadata of the TPU. Codes 0 to 3 would come again; all others (a
# host lost, stuck, pre-empted) are started again.
tpu ssh @NAME@ --worker=all --command='
    cd polaris_jax && . .venv/bin/activate
    for start in $(seq 0 @RESTARTS@); do
        code=0; @COMMAND@ || code=$?
        [ "$code" -gt 3 ] || exit "$code"
        sleep 30
    done
    exit "$code"'
