"""`python -m edge_sfda.live.ros`: the node without an ament package around it."""

from edge_sfda.live.ros import main

if __name__ == "__main__":  # the process of a burst imports this module as well
    main()
