// fault: triggers a bug on purpose, to show its report.

import PhysicalMemory
import Paging
import KernelMemory
import Kmem
import PageTables
import MemoryPrimitives

extension CommandDescription {
  static var fault: CommandDescription {
    CommandDescription(
      name: "fault", usage: "fault KIND",
      about: """
        Triggers a bug on purpose, and shows its report. The machine
        stops with exit status 37. Kinds: null guard write-text execute-data
        double-free wrong-size foreign-pointer stack-overflow divide overflow
        lock-order locked-sleep locked-fault window-twice window-sleep window-fault
        hang nmi everywhere.
        """,
      example: "fault double-free", question: .trial,
      completion: .names(of: .faults))
  }
}

extension Shell {
  /// A fault that a person can trigger.
  package enum Fault: UInt8, NamedCases, Sendable {
    case null, guardPage, writeText, executeData, doubleFree, wrongSize, foreignPointer, stackOverflow
    case divide, overflow
    case lockOrder, lockedSleep, lockedFault, windowTwice, windowSleep, windowFault, hang, nmi, everywhere

    static var last: Self { .everywhere }

    var name: StaticString {
      switch self {
      case .null: "null"
      case .guardPage: "guard"
      case .writeText: "write-text"
      case .executeData: "execute-data"
      case .doubleFree: "double-free"
      case .wrongSize: "wrong-size"
      case .foreignPointer: "foreign-pointer"
      case .stackOverflow: "stack-overflow"
      case .divide: "divide"
      case .overflow: "overflow"
      case .lockOrder: "lock-order"
      case .lockedSleep: "locked-sleep"
      case .lockedFault: "locked-fault"
      case .windowTwice: "window-twice"
      case .windowSleep: "window-sleep"
      case .windowFault: "window-fault"
      case .hang: "hang"
      case .nmi: "nmi"
      case .everywhere: "everywhere"
      }
    }
  }

  func fault(_ arguments: Arguments) throws(CommandError) {
    guard let word = arguments.nextOfAnyForm() else {
      var names: Line = "Which?"
      Fault.forEach { names.append(line: " \($0.name)") }
      throw refuse(names)
    }
    try arguments.end()
    guard let fault = Fault.named(word.bytes) else {
      throw refuse(word, "no such fault; help fault lists them")
    }
    switch fault {
    case .doubleFree: freeTwice(firstAs: Self.small)
    case .wrongSize: freeTwice(firstAs: Self.larger)
    case .foreignPointer: faultForeignPointer()
    case .windowTwice: openTwice()
    case .windowSleep: sleepWithWindow()
    case .hang:
      guard let view = state.pointee.host.executive, view.isWatching else {
        throw refuse("The watchdog is off, so a hang would not be reported. Type: watchdog on")
      }
      state.pointee.host.trigger(fault)
    case .null, .guardPage, .writeText, .executeData, .stackOverflow, .divide, .overflow, .lockOrder,
      .lockedSleep, .lockedFault, .windowFault, .nmi, .everywhere:
      state.pointee.host.trigger(fault)
    }
    throw fail("The machine did not report the fault: this is a bug of Strata.")
  }

  // Bugs of a caller of kmem. The size classes are audited during the call, so that kmem knows both call sites and
  // finds the bug at once, not when the object leaves a magazine.

  // Bugs of a caller of page windows. They are open for reading, over a frame that no one frees.

  @inline(never) private func openTwice() {
    let windows = memory.pageTables.windows
    let frame = memory.pageTables.root.frame
    let outer = windows.open(frame, frame, for: .read)
    let inner = windows.open(frame, frame, for: .read)
    inner.close()
    outer.close()
  }

  @inline(never) private func sleepWithWindow() {
    let frame = memory.pageTables.root.frame
    let window = memory.pageTables.windows.open(frame, frame, for: .read)
    let queue = WaitQueue("nothing")
    _ = queue.sleep(queue.ticket(), until: memory.machine.now, on: memory.machine)
    window.close()
  }

  private static var small: ByteCount { ByteCount(UInt64(64)) }
  private static var larger: ByteCount { ByteCount(UInt64(128)) }

  private func setAudit(_ auditing: Auditing) {
    memory.kmem.lookUp(Self.small)?.setAudit(auditing)
    memory.kmem.lookUp(Self.larger)?.setAudit(auditing)
  }

  /// Frees an object of the small size as one of `size`, and then as what it is. Of the right size, the second free is
  /// the bug. Of a wrong size, the first is: where its report returns, as in a test, it has changed nothing.
  @inline(never) private func freeTwice(firstAs size: ByteCount) {
    let kmem = memory.kmem
    let type = kmem.type(named: ShortName("console"))
    setAudit(.on)
    if let object = kmem.alloc(Self.small, type: type) {
      kmem.free(object, size: size, type: type)
      kmem.free(object, size: Self.small, type: type)
    }
    setAudit(kmem.auditing)
  }

  @inline(never) private func faultForeignPointer() {
    let kmem = memory.kmem
    let type = kmem.type(named: ShortName("console"))
    setAudit(.on)
    // The console's own memory, which no cache has allocated.
    kmem.free(UnsafeMutableRawPointer(state), size: Self.small, type: type)
    setAudit(kmem.auditing)
  }
}
