// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/xen/domains.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <xenctrl.h>

struct cowd_control *cowd_control_open(void)
{
	return (struct cowd_control *)xc_interface_open(NULL, NULL, 0);
}

void cowd_control_close(struct cowd_control *control)
{
	xc_interface_close((xc_interface *)control);
}

static void convert(struct cowd_domain *to, const xc_domaininfo_t *from)
{
	to->id = from->domain;
	memcpy(to->uuid, from->handle, sizeof(to->uuid));
	to->dying = from->flags & XEN_DOMINF_dying;
	to->shut_down = from->flags & XEN_DOMINF_shutdown;
	to->reason = (from->flags >> XEN_DOMINF_shutdownshift) & XEN_DOMINF_shutdownmask;
	to->has_run = from->cpu_time != 0;
}

int cowd_domains(struct cowd_control *control, uint32_t first, struct cowd_domain *list,
		 unsigned int max)
{
	xc_domaininfo_t *info = calloc(max, sizeof(*info));
	int i, count;

	if (!info)
		return -ENOMEM;
	count = xc_domain_getinfolist((xc_interface *)control, first, max, info);
	if (count < 0)
		count = -errno;
	for (i = 0; i < count; i++)
		convert(&list[i], &info[i]);
	free(info);
	return count;
}
