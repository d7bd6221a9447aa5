// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The text that device-mapper carries: table parameters and status lines.
 *
 *  parameters: <key> <#features> [feature...] <#dests> {<dest> ro|rw}...
 *  status:     <state> <extents>/<max> <leaves> <faults> <parked> <uncommitted>
 *              <gen> <#counters> {<name> <value>}...
 */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "internal.h"

/* -------------------------------------------------------------- writing --- */

struct writer {
	char *buf;
	size_t room;	/* of buf */
	size_t used;	/* what all of it takes, also beyond the room */
};

static __attribute__((format(printf, 2, 3))) void put(struct writer *w, const char *fmt, ...)
{
	size_t at = w->used < w->room ? w->used : w->room;
	va_list args;

	va_start(args, fmt);
	w->used += vsnprintf(w->room ? w->buf + at : NULL, w->room - at, fmt, args);
	va_end(args);
}

/* #features counts words, so that a parser may skip a feature it does not know. */
static unsigned int feature_words(const struct dmu_spec *spec)
{
	static const unsigned int no_daemon[] = { 0, 1, 2 };

	return no_daemon[spec->no_daemon] + (spec->max_extents ? 2 : 0) +
	       (spec->max_uncommitted ? 2 : 0) + (spec->discard_granularity ? 2 : 0) +
	       (spec->write_zeroes ? 1 : 0);
}

int dmu_format_params(const struct dmu_spec *from, char *buf, size_t len, struct dmu_error *err)
{
	struct writer w = { .buf = buf, .room = len };
	struct dmu_spec spec;
	uint32_t i;
	int r;

	r = dmu_spec_check(&spec, from, err);
	if (r)
		return r;

	put(&w, "%s %u", spec.key, feature_words(&spec));
	if (spec.no_daemon == DMU_NO_DAEMON_QUEUE)
		put(&w, " queue_if_no_daemon");
	if (spec.no_daemon == DMU_NO_DAEMON_FAIL)
		put(&w, " fail_if_no_daemon %" PRIu32, spec.no_daemon_secs);
	if (spec.max_extents)
		put(&w, " max_extents %" PRIu32, spec.max_extents);
	if (spec.max_uncommitted)
		put(&w, " max_uncommitted %" PRIu32, spec.max_uncommitted);
	if (spec.discard_granularity)
		put(&w, " discard_granularity %" PRIu32, spec.discard_granularity);
	if (spec.write_zeroes)
		put(&w, " write_zeroes");

	put(&w, " %" PRIu32, spec.num_dests);
	for (i = 0; i < spec.num_dests; i++)
		put(&w, " %s %s", spec.dests[i].path,
		    spec.dests[i].flags & DMU_READ_ONLY ? "ro" : "rw");
	return (int)w.used;
}

/* -------------------------------------------------------------- reading --- */

struct word {
	const char *at;
	size_t len;
};

static bool next_word(const char **text, struct word *word)
{
	const char *p = *text;

	while (isspace((unsigned char)*p))
		p++;
	word->at = p;
	while (*p && !isspace((unsigned char)*p))
		p++;
	word->len = p - word->at;
	*text = p;
	return word->len > 0;
}

static bool word_is(const struct word *word, const char *text)
{
	return strlen(text) == word->len && !memcmp(word->at, text, word->len);
}

static bool word_copy(const struct word *word, char *to, size_t room)
{
	if (word->len >= room)
		return false;
	memcpy(to, word->at, word->len);
	to[word->len] = '\0';
	return true;
}

static bool word_u64(const struct word *word, uint64_t max, uint64_t *value)
{
	uint64_t digit, sum = 0;
	size_t i;

	if (!word->len)
		return false;
	for (i = 0; i < word->len; i++) {
		if (!isdigit((unsigned char)word->at[i]))
			return false;
		digit = word->at[i] - '0';
		if (sum > (max - digit) / 10)
			return false;
		sum = sum * 10 + digit;
	}
	*value = sum;
	return true;
}

static bool next_u64(const char **text, uint64_t *value)
{
	struct word word;

	return next_word(text, &word) && word_u64(&word, UINT64_MAX, value);
}

static bool next_u32(const char **text, uint32_t *value)
{
	struct word word;
	uint64_t wide;

	if (!next_word(text, &word) || !word_u64(&word, UINT32_MAX, &wide))
		return false;
	*value = (uint32_t)wide;
	return true;
}

/* Takes one feature, and its argument from *text; *left counts words left. */
static bool parse_feature(const char **text, uint32_t *left, struct dmu_table *table)
{
	const struct {
		const char *name;
		uint32_t *value;
	} numbers[] = {
		{ "fail_if_no_daemon", &table->no_daemon_secs },
		{ "max_extents", &table->max_extents },
		{ "max_uncommitted", &table->max_uncommitted },
		{ "discard_granularity", &table->discard_granularity },
	};
	struct word word;
	size_t i;

	if (!next_word(text, &word))
		return false;
	--*left;
	if (word_is(&word, "queue_if_no_daemon"))
		table->no_daemon = DMU_NO_DAEMON_QUEUE;
	else if (word_is(&word, "fail_if_no_daemon"))
		table->no_daemon = DMU_NO_DAEMON_FAIL;
	else if (word_is(&word, "write_zeroes"))
		table->write_zeroes = 1;

	for (i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		if (!word_is(&word, numbers[i].name))
			continue;
		if (!*left || !next_u32(text, numbers[i].value))
			return false;
		--*left;
	}
	return true;	/* a word of a newer module is skipped */
}

static bool parse_dest(const char **text, struct dmu_table_dest *dest)
{
	struct word word;

	if (!next_word(text, &word) || !word_copy(&word, dest->path, sizeof(dest->path)))
		return false;
	if (!next_word(text, &word))
		return false;
	if (word_is(&word, "ro"))
		dest->flags = DMU_READ_ONLY;
	else if (!word_is(&word, "rw"))
		return false;
	return true;
}

static bool parse_table(const char *text, struct dmu_table *table)
{
	struct word word;
	uint32_t left, i;

	if (!next_word(&text, &word) || !word_copy(&word, table->key, sizeof(table->key)))
		return false;
	if (!next_u32(&text, &left))
		return false;
	while (left)
		if (!parse_feature(&text, &left, table))
			return false;
	if (!next_u32(&text, &table->num_dests) || table->num_dests > DMU_MAX_DESTS)
		return false;
	for (i = 0; i < table->num_dests; i++)
		if (!parse_dest(&text, &table->dests[i]))
			return false;
	return !next_word(&text, &word);
}

int dmu_parse_params(const char *params, struct dmu_table *to, struct dmu_error *err)
{
	struct dmu_table *table = calloc(1, sizeof(*table));
	int r = 0;

	if (!table)
		return dmu_fail(err, -ENOMEM, "There is no memory to parse a table.");
	table->size = sizeof(*table);
	if (!parse_table(params, table))
		r = dmu_fail(err, -EPROTO, "\"%s\" is not the table of a %s target.", params,
			     DMU_TARGET);
	else if (dmu_copy_out(to, table, sizeof(*table)))
		r = dmu_fail(err, -EINVAL, "The size field of the table is not set.");
	free(table);
	return r;
}

static const char *const state_names[] = {
	[DMU_STATE_UNKNOWN] = "unknown",
	[DMU_STATE_NO_DAEMON] = "no_daemon",
	[DMU_STATE_REPLAYING] = "replaying",
	[DMU_STATE_ACTIVE] = "active",
	[DMU_STATE_SUSPENDED] = "suspended",
};

#define NUM_STATES (sizeof(state_names) / sizeof(state_names[0]))

const char *dmu_state_name(uint32_t state)
{
	return state_names[state < NUM_STATES ? state : DMU_STATE_UNKNOWN];
}

static bool parse_state(const char **text, struct dmu_status *status)
{
	struct word word;
	uint32_t i;

	if (!next_word(text, &word) || isdigit((unsigned char)word.at[0]))
		return false;
	for (i = 0; i < NUM_STATES; i++)
		if (word_is(&word, state_names[i]))
			status->state = i;
	return true;
}

/* "<extents>/<max_extents>" */
static bool parse_extents(const char **text, struct dmu_status *status)
{
	struct word word, part;
	const char *slash;

	if (!next_word(text, &word))
		return false;
	slash = memchr(word.at, '/', word.len);
	if (!slash)
		return false;
	part.at = word.at;
	part.len = slash - word.at;
	if (!word_u64(&part, UINT64_MAX, &status->extents))
		return false;
	part.at = slash + 1;
	part.len = word.at + word.len - part.at;
	return word_u64(&part, UINT64_MAX, &status->max_extents);
}

static bool parse_counter(const char **text, struct dmu_status *status)
{
	const struct {
		const char *name;
		uint64_t *value;
	} known[] = {
		{ "faults", &status->faults },
		{ "reads_parked", &status->reads_parked },
		{ "writes_parked", &status->writes_parked },
		{ "promotions", &status->promotions },
		{ "copies", &status->copies },
		{ "copied_sectors", &status->copied_sectors },
		{ "flushes", &status->flushes },
		{ "daemon_flushes", &status->daemon_flushes },
		{ "evictions", &status->evictions },
		{ "invalidations", &status->invalidations },
		{ "discards", &status->discards },
		{ "pushed", &status->pushed },
		{ "errors", &status->errors },
	};
	struct word name;
	uint64_t value;
	size_t i;

	if (!next_word(text, &name) || !next_u64(text, &value))
		return false;
	for (i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (word_is(&name, known[i].name))
			*known[i].value = value;
	return true;
}

static bool parse_status(const char *text, struct dmu_status *status)
{
	uint64_t counters;

	if (!parse_state(&text, status) || !parse_extents(&text, status) ||
	    !next_u64(&text, &status->leaves) || !next_u64(&text, &status->faults_outstanding) ||
	    !next_u64(&text, &status->bios_parked) || !next_u64(&text, &status->uncommitted) ||
	    !next_u64(&text, &status->gen) || !next_u64(&text, &counters))
		return false;
	while (counters--)
		if (!parse_counter(&text, status))
			return false;
	return true;	/* what a newer module appends is skipped */
}

int dmu_parse_status(const char *line, struct dmu_status *to, struct dmu_error *err)
{
	struct dmu_status status = { .size = sizeof(status) };

	if (!parse_status(line, &status))
		return dmu_fail(err, -EPROTO, "\"%s\" is not the status of a %s target.", line,
				DMU_TARGET);
	if (dmu_copy_out(to, &status, sizeof(status)))
		return dmu_fail(err, -EINVAL, "The size field of the status is not set.");
	return 0;
}
