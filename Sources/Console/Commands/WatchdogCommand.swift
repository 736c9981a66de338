// watchdog: reports a processor that makes no progress.

import CPlatform
import MemoryPrimitives
import Workloads

extension CommandDescription {
  static var watchdog: CommandDescription {
    CommandDescription(
      name: "watchdog", usage: "watchdog [on|off]",
      about: """
        The watchdog reports a processor that makes no progress for ten seconds.
        Without an argument, whether it is on. On one processor it needs QEMU's
        watchdog device: QEMUFLAGS="-device ib700 -action watchdog=inject-nmi".
        """,
      example: "watchdog on", question: .trial,
      completion: .words("on off"))
  }
}

extension Shell {
  func watchdog(_ arguments: Arguments) throws(CommandError) {
    let view = try executive()
    if let word = arguments.next() {
      try arguments.end()
      switch true {
      case word.bytes == "on": view.watch(true)
      case word.bytes == "off": view.watch(false)
      default: throw refuse(word, "on or off")
      }
    }
    let isOn = view.isWatching
    row("watchdog") { $0.field("on", isOn ? 1 : 0) }
    print(
      isOn ? "On: a processor without progress for ten seconds reports, and the machine stops." : "Off.")
  }
}
