"""smtp.py PORT: an SMTP server (aiosmtpd) that takes every message and prints whom it was for."""
import signal
import sys

from aiosmtpd.controller import UnthreadedController
import asyncio


class Inbox:
    async def handle_DATA(self, server, session, envelope):
        print(envelope.rcpt_tos, len(envelope.content), flush=True)
        return f"250 taken {len(envelope.content)} bytes"


loop = asyncio.new_event_loop()
controller = UnthreadedController(Inbox(), hostname="", port=int(sys.argv[1]), loop=loop)
controller.begin()
loop.add_signal_handler(signal.SIGTERM, loop.stop)
loop.run_forever()
