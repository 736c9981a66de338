// The console on the serial port: this machine's answers to the calls of the Console module.

import CPlatform
import Console
import KernelMemory
import MemoryPrimitives
import PhysicalMemory

enum SerialConsole {
  /// The serial port as a terminal.
  private static var terminal: Terminal {
    Terminal(
      nil,
      countUnread: { _ in SerialPort.unread },
      readByte: { SerialPort.byte(at: $1) },
      removeBytes: { SerialPort.remove(at: $1, count: $2) },
      writeBytes: { SerialPort.write(UnsafeBufferPointer(start: $1, count: $2)) },
      waitForBytes: { Executive.rest($1, unread: $2) },
      readClock: { _ in Timer.now.rawValue })
  }

  private static var host: ConsoleHost {
    ConsoleHost(
      nil,
      leaveMachine: { _, status in
        switch Shell.ExitStatus(rawValue: status) {
        case .success: Stop.success.now()
        case .commandFailed: Stop.failure.now()
        case .fault, nil: Stop.fault.now()
        }
      },
      stopAsPanic: { _ in Reports.panic("panic", "asked for at the console") },
      triggerFault: { _, fault in
        if let fault = Shell.Fault(rawValue: fault) { SerialConsole.trigger(fault) }
      },
      writeName: { _, address, buffer, capacity in
        guard let (name, distance) = Symbols.function(at: address) else { return 0 }
        var line = Line()
        line.append(bytes: name)
        line.append(" +")
        line.append(offset: distance)
        let count = min(line.count, capacity)
        for i in 0..<count { buffer[i] = line[i] }
        return count
      },
      access: PageAccesses.words,
      executive: ExecutiveInspection.view)
  }

  /// Runs the commands of `run=` and leaves, or serves the terminal until a command ends the machine.
  static func run(
    _ memory: MemorySystem, _ boot: UnsafeMutablePointer<cp_boot_information>,
    in storage: FrameRun
  ) -> Never {
    let line = KernelCommandLine(
      UnsafeBufferPointer(start: cp_boot_line(boot), count: Int(boot.pointee.line_length)))
    guard SerialPort.isThere || line.hasRun else {
      Reports.panic(
        "a machine that Strata refuses", "it has neither a serial port nor run= on its command line")
    }
    let console = Shell(
      in: Executive.directMap.pointer(to: storage.first), terminal: terminal, host: host,
      subject: Subject(memory: memory, boot: boot, imageBase: VirtualAddress(Image.virtualOffset)))
    console.serve(line)
    Stop.success.now()
  }

  /// Allocates all memory that the console ever needs, once, so that inspection allocates none.
  static func allocateStorage(_ physical: FrameAllocator) -> FrameRun {
    do throws(PhysicalMemoryError) {
      return try physical.allocate(
        run: Shell.size.pagesRoundedUp, role: .boot, for: FrameOwner("the console"))
    } catch {
      Reports.panic("a machine that Strata refuses", "it is too small: there is no memory for the console")
    }
  }

  private static func trigger(_ fault: Shell.Fault) {
    switch fault {
    case .null: TriggeredFault.null.trigger()
    case .guardPage: TriggeredFault.guardPage.trigger()
    case .writeText: TriggeredFault.writeText.trigger()
    case .executeData: TriggeredFault.executeData.trigger()
    case .stackOverflow: TriggeredFault.stackOverflow.trigger()
    case .divide: TriggeredFault.divide.trigger()
    case .overflow: TriggeredFault.overflow.trigger()
    case .lockOrder: TriggeredFault.lockOrder.trigger()
    case .lockedSleep: TriggeredFault.lockedSleep.trigger()
    case .lockedFault: TriggeredFault.lockedFault.trigger()
    case .windowFault: TriggeredFault.windowFault.trigger()
    case .hang: TriggeredFault.hang.trigger()
    case .nmi: TriggeredFault.nmi.trigger()
    case .everywhere: TriggeredFault.everywhere.trigger()
    // Reported when the console does it.
    case .doubleFree, .wrongSize, .foreignPointer, .windowTwice, .windowSleep: break
    }
  }
}
