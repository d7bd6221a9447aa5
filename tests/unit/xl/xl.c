// SPDX-License-Identifier: GPL-2.0-or-later
//
// What xl does with disks before it does anything to a guest, on a host without Xen:
//   xl -N block-attach DOMAIN PARAMETER...   one disk, printed as xl prints it
//   xl -n create FILE                        each disk of a configuration
// The parser is whichever libxlutil this is linked with.

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libxl.h>
#include <libxlutil.h>

static int show_disk(XLU_Config *config, int count, const char *const *parameters)
{
	libxl_device_disk disk;
	char *json;

	libxl_device_disk_init(&disk);
	if (xlu_disk_parse(config, count, parameters, &disk))
		return 1;
	// Of the context it only needs to be told where to complain.
	json = libxl_device_disk_to_json(NULL, &disk);
	if (!json)
		return 1;
	printf("disk: %s\n", json);
	free(json);
	libxl_device_disk_dispose(&disk);
	return 0;
}

static int show_file(XLU_Config *config, const char *path)
{
	XLU_ConfigList *disks;
	int count, i, status = 0;

	if (xlu_cfg_readfile(config, path))
		return 1;
	if (xlu_cfg_get_list(config, "disk", &disks, &count, 0))
		return 1;
	for (i = 0; i < count; i++) {
		const char *disk = xlu_cfg_get_listitem(disks, i);

		status |= !disk || show_disk(config, 1, &disk);
	}
	return status;
}

int main(int argc, char **argv)
{
	XLU_Config *config = xlu_cfg_init(stderr, "command line");

	if (!config)
		return 1;
	if (argc > 4 && !strcmp(argv[1], "-N") && !strcmp(argv[2], "block-attach"))
		return show_disk(config, argc - 4, (const char *const *)argv + 4);
	if (argc == 4 && !strcmp(argv[1], "-n") && !strcmp(argv[2], "create"))
		return show_file(config, argv[3]);
	fprintf(stderr, "usage: xl -N block-attach DOMAIN PARAMETER...\n"
			"       xl -n create FILE\n");
	return 2;
}
