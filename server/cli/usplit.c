/*
 * `usplit`, the command line: chooses the command, parses its options from its table, runs it.
 * Exit status: 0 done, 1 failed, 2 wrong usage, 128 + signal if interrupted.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_commands.h"
#include "us_heap.h"

static const struct us_cli_cmd *const commands[] = {
    &us_cmd_predict,
    &us_cmd_watch,
    &us_cmd_train,
    &us_cmd_evaluate,
    &us_cmd_model_show,
    &us_cmd_model_check,
    &us_cmd_model_init,
    &us_cmd_model_import,
    &us_cmd_model_export,
    &us_cmd_metrics,
    &us_cmd_dataset_critters,
};

static void print_help(FILE *out, const char *group)
{
    (void)fprintf(out, "usage: usplit COMMAND [options] [arguments]\n\n");
    for (size_t i = 0; i < US_COUNT(commands); i++) {
        size_t n = group == NULL ? 0 : strlen(group);
        if (n == 0 || (strncmp(commands[i]->name, group, n) == 0 && commands[i]->name[n] == ' '))
            (void)fprintf(out, "  %-18s %s\n", commands[i]->name, commands[i]->summary);
    }
    (void)fprintf(out, "\n`usplit COMMAND --help` explains one command; `usplit --version`.\n");
}

/* Whether argv begins with the words of name; *n_words is how many they are. */
static bool matches(const char *name, int argc, char *const *argv, int *n_words)
{
    size_t n = strcspn(name, " ");
    if (argc < 1 || strlen(argv[0]) != n || strncmp(argv[0], name, n) != 0)
        return false;
    *n_words = name[n] == ' ' ? 2 : 1;
    return *n_words == 1 || (argc >= 2 && strcmp(argv[1], name + n + 1) == 0);
}

/* The first word of commands with two ("model"), or NULL. */
static const char *find_group(const char *word)
{
    size_t n = strlen(word);
    for (size_t i = 0; i < US_COUNT(commands); i++)
        if (strncmp(commands[i]->name, word, n) == 0 && commands[i]->name[n] == ' ')
            return word;
    return NULL;
}

/* The command that these words were probably meant to be, or NULL: one word or the first two. */
static const char *nearest_command(int argc, char *const *argv)
{
    const char *names[US_COUNT(commands)];
    for (size_t i = 0; i < US_COUNT(commands); i++)
        names[i] = commands[i]->name;
    char two[128];
    (void)snprintf(two, sizeof(two), "%s %s", argv[0], argc >= 2 ? argv[1] : "");
    const char *near = argc >= 2 ? us_cli_nearest(two, names, US_COUNT(names)) : NULL;
    return near != NULL ? near : us_cli_nearest(argv[0], names, US_COUNT(names));
}

static int unknown_command(int argc, char *const *argv)
{
    const char *group = find_group(argv[0]);
    bool help = argc >= 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0);
    if (group != NULL && (argc == 1 || help)) {
        print_help(help ? stdout : stderr, group);
        return help ? 0 : 2;
    }
    const char *second = group != NULL ? argv[1] : "";
    const char *near = nearest_command(argc, argv);
    if (near != NULL)
        us_cli_print(stderr, "usplit: unknown command '%s%s%s', did you mean '%s'?\n", argv[0],
                     group != NULL ? " " : "", second, near);
    else
        us_cli_print(stderr, "usplit: unknown command '%s%s%s' (see usplit --help)\n", argv[0],
                     group != NULL ? " " : "", second);
    return 2;
}

static int run_command(const struct us_cli_cmd *cmd, int argc, char *const *argv)
{
    struct us_err err = {0};
    struct us_cli_args a;
    void *opts = calloc(1, cmd->opts_bytes + 1); /* + 1: some have none */
    if (opts == NULL) {
        us_cli_print(stderr, "usplit %s: out of memory\n", cmd->name);
        return 1;
    }
    int status = 2;
    if (us_cli_parse(cmd, argc, argv, opts, &a, &err) != US_OK) {
        us_cli_print(stderr, "usplit %s: %s\n", cmd->name, err.msg);
    } else if (a.help) {
        us_cli_help(cmd, stdout);
        status = 0;
    } else {
        status = cmd->run(&a);
    }
    free(opts);
    return status;
}

/* Output that did not reach its reader (full disk, closed pipe) is a failure. */
static int close_stdout(int status)
{
    bool bad = ferror(stdout) != 0;
    if (fclose(stdout) != 0 || bad) {
        us_cli_print(stderr, "usplit: standard output could not be written\n");
        return status == 0 ? 1 : status;
    }
    return status;
}

static int dispatch(int argc, char *const *argv)
{
    if (argc < 1) {
        print_help(stderr, NULL);
        return 2;
    }
    if (strcmp(argv[0], "--help") == 0 || strcmp(argv[0], "-h") == 0) {
        print_help(stdout, NULL);
        return 0;
    }
    if (strcmp(argv[0], "--version") == 0) {
        (void)puts(US_PROGRAM);
        return 0;
    }
    int n_words = 0;
    for (size_t i = 0; i < US_COUNT(commands); i++)
        if (matches(commands[i]->name, argc, argv, &n_words))
            return run_command(commands[i], argc - n_words, argv + n_words);
    return unknown_command(argc, argv);
}

int main(int argc, char **argv)
{
    us_heap_init();
    return close_stdout(dispatch(argc - 1, argv + 1));
}
