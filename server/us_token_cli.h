/*
 * `usplitd token add|list|revoke`: the tokens of a data folder, also beside a running daemon. Run
 * by root it acts as the owner of the folder, so that no file in it ends up out of the daemon's
 * reach.
 */
#ifndef US_TOKEN_CLI_H
#define US_TOKEN_CLI_H

/* argv[0] is "token". Returns the exit status: 0 done, 1 failed, 2 wrong usage. */
int us_token_main(int argc, char *const *argv);

#endif
