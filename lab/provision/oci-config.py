"""Turn the default config.json of `runc spec` into one of the lab's containers. Arguments: see oci.sh."""

import json
import sys

path, name, image, volume, command, readonly, runas = sys.argv[1:]
with open(path) as file:
    config = json.load(file)

process = config["process"]
process["terminal"] = False
process["args"] = ["/slim-app"] if image == "slim" else ["/bin/sh", "-c", command]
process["env"] = ["PATH=/usr/bin:/bin:/sbin", f"LAB_NAME={name}", "GREETING=hello world"]
process.pop("rlimits", None)  # raising one needs CAP_SYS_RESOURCE, which not every machine gives
process["noNewPrivileges"] = bool(runas)
if runas:
    process["user"] = {"uid": int(runas), "gid": int(runas), "additionalGids": [2000]}
    process["capabilities"] = {kind: [] for kind in process["capabilities"]}
config["root"]["readonly"] = bool(readonly)
config["hostname"] = "boxhost" if name == "box" else name
if image != "slim":
    config["mounts"].append({"destination": "/data", "type": "bind", "source": volume, "options": ["rbind", "rw"]})
    config["mounts"].append(
        {"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]}
    )
with open(path, "w") as file:
    json.dump(config, file, indent=1)
