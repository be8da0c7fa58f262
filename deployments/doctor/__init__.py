"""`ups doctor`: what of server, pools, worker, store and machine works, and what to do if not."""
