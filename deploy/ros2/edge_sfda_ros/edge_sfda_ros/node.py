"""`ros2 run edge_sfda_ros node`."""

from edge_sfda.live.ros import main

if __name__ == "__main__":
    main()
