"""An RTSP server on loopback, GStreamer's: prints its port, serves /street until its standard input ends.

Run by the system's Python, which has PyGObject; exits 3 where GStreamer or its server is absent.
"""

import sys
import threading

try:
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer
except (ImportError, ValueError) as error:
    sys.stderr.write(f"{error}\n")
    sys.exit(3)

Gst.init(None)
for element in ("jpegenc", "rtpjpegpay", "videotestsrc"):
    if Gst.ElementFactory.find(element) is None:
        sys.stderr.write(f"GStreamer has no {element}\n")
        sys.exit(3)

server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service("0")  # any free port
street = GstRtspServer.RTSPMediaFactory()
street.set_shared(True)
street.set_launch(
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,format=I420,width=160,height=120,framerate=20/1"
    " ! jpegenc ! rtpjpegpay name=pay0 pt=26 )"
)
server.get_mount_points().add_factory("/street", street)
server.attach(None)
loop = GLib.MainLoop()


def leave() -> None:
    sys.stdin.read()
    loop.quit()


threading.Thread(target=leave, daemon=True).start()
sys.stdout.write(f"{server.get_bound_port()}\n")
sys.stdout.flush()
loop.run()
