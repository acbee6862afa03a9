/* Taking the ids that a role names: "same", a uid, or a uid and `+` for with the capabilities kept. */
#include <linux/capability.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static void become(const char *role)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2];
	int uid = atoi(role), keep = strchr(role, '+') != NULL;

	if (!strcmp(role, "same"))
		return;
	if (keep)
		prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0);
	if (syscall(SYS_setgroups, 0, NULL) || syscall(SYS_setresgid, uid, uid, uid) || syscall(SYS_setresuid, uid, uid, uid))
		_exit(4);
	if (keep) {
		syscall(SYS_capget, &header, data);
		data[0].effective = data[0].permitted;
		data[1].effective = data[1].permitted;
		syscall(SYS_capset, &header, data);
	}
}
