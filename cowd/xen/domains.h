/* SPDX-License-Identifier: GPL-2.0-or-later */
/* libxenctrl's list of domains, in C: its headers are no C++. */
#ifndef COWD_XEN_DOMAINS_H
#define COWD_XEN_DOMAINS_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct cowd_domain {
	uint32_t id;
	uint8_t uuid[16];
	bool dying;
	bool shut_down;
	unsigned int reason;	/* SHUTDOWN_* of Xen's public headers */
	bool has_run;
};

struct cowd_control;

/* NULL and errno. cowd_control_close frees it. */
struct cowd_control *cowd_control_open(void);
void cowd_control_close(struct cowd_control *control);

/* Fills list with the domains from id `first` on; how many, or a negative errno. */
int cowd_domains(struct cowd_control *control, uint32_t first, struct cowd_domain *list,
		 unsigned int max);

#ifdef __cplusplus
}
#endif
#endif
