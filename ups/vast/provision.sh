# Second half of the onstart script, sourced from the clone: install, then run the job.
# shellcheck shell=bash disable=SC2154  # the first half, onstart.sh, sets them
phase install
unset PYTHONDONTWRITEBYTECODE # container images set it; every start would compile Prefect anew
# The image's torch will do where its version is the locked one; a local part (+cu130) may differ.
locked=$(sed -n 's/^torch==\([^ ;]*\).*/\1/p' constraints.txt)
probe='
import importlib.metadata, sys
assert sys.version_info >= (3, 11)
torch = importlib.metadata.distribution("torch")
assert sys.argv[1] in (torch.version, torch.version.partition("+")[0])
print(torch.locate_file("").resolve())'
python='' site=''
for candidate in python3 python /opt/conda/bin/python3 /venv/main/bin/python3; do
  if site=$("$candidate" -c "$probe" "$locked" 2>/dev/null); then
    python=$(command -v "$candidate")
    break
  fi
done

if ! uv=$(command -v uv); then
  "${python:-python3}" -m pip install -q --target "$WORK/uv" uv
  uv=$WORK/uv/bin/uv
fi
[[ -x $WORK/env/bin/python ]] || "$uv" venv -q --python "${python:->=3.11}" "$WORK/env"
export PATH=$WORK/env/bin:$PATH
path_file=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/image-torch.pth
rm -f -- "$path_file"
without=()
if [[ $site ]]; then
  say "torch $locked is the image's, in $site"
  echo 'torch; python_version < "3"' >"$WORK/overrides.txt" # never: so neither torch nor its CUDA
  without=(--overrides "$WORK/overrides.txt")
  # By a path file and not by --system-site-packages, which leaves out what is in the image's venv.
  echo "$site" >"$path_file"
else
  say "the image has no torch $locked for Python 3.11 or newer: installing it"
fi
# Bytecode of all packages takes 28 s of a processor, on all cores at once; what the first start
# compiles of it as it imports, 4 s, one file after another.
compile=()
if (($(python -c 'from ups.machine.cgroup import num_cores; print(num_cores())') >= 16)); then
  compile=(--compile-bytecode)
fi
"$uv" pip install -q --python "$WORK/env/bin/python" -c constraints.txt "${without[@]}" \
  "${compile[@]}" -e .
python -c '
import importlib.util, sys
found = importlib.util.find_spec("torch")
expected = sys.argv[1] or sys.prefix
if found is None or not found.origin.startswith(expected):
    sys.exit(f"torch: found {found and found.origin}, expected it in {expected}")' "$site"

phase worker
if [[ $API_URL ]]; then export PREFECT_API_URL=$API_URL; fi
export PDEBENCH_ROOT=$MOUNT/data/pdebench UPS_PROVISION=$STATE/provision PREFECT_HOME=$WORK/prefect
keep=()
((AUTO_SHUTDOWN)) || keep=(--keep)
python -m deployments.rented --parameters "$PARAMETERS" --state "$STATE" --since "$SINCE" \
  --mount "$MOUNT" "${keep[@]}" &
JOB=$!
echo "$JOB" >"$STATE/job"
wait "$JOB"
