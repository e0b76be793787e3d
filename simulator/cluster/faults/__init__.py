"""What can go wrong in a simulated cluster, and what becomes of the requests then."""
