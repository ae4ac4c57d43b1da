# Runs under a user manager (manager.sh): a new user with a clone, whose shell does what comes on standard input.
cp -r /mnt/clone ~/zstor-local
exec bash
