// The services that only the machine under the console has.

import MemoryPrimitives
import Workloads

/// Services of the machine as calls that cross the platform interface.
package struct ConsoleHost {
  let context: UnsafeMutableRawPointer?
  private let leaveMachine: @convention(c) (UnsafeMutableRawPointer?, UInt8) -> Void
  private let stopAsPanic: @convention(c) (UnsafeMutableRawPointer?) -> Void
  private let triggerFault: @convention(c) (UnsafeMutableRawPointer?, UInt8) -> Void
  private let writeName:
    @convention(c) (UnsafeMutableRawPointer?, UInt64, UnsafeMutablePointer<UInt8>, Int) -> Int
  /// Pageable memory as the machine reaches it.
  let access: WordAccess
  /// Processors and threads, where there is an executive.
  let executive: ExecutiveView?

  /// - `leaveMachine` ends the machine with a `Shell.ExitStatus`; it returns only in a test.
  /// - `stopAsPanic` stops the machine as a panic.
  /// - `triggerFault` triggers a `Shell.Fault`, which ends in its report.
  /// - `writeName` writes the name and offset of a code address, as many bytes as fit, and answers how many it wrote; 0
  ///   for an unknown address.
  package init(
    _ context: UnsafeMutableRawPointer?,
    leaveMachine: @escaping @convention(c) (UnsafeMutableRawPointer?, UInt8) -> Void,
    stopAsPanic: @escaping @convention(c) (UnsafeMutableRawPointer?) -> Void,
    triggerFault: @escaping @convention(c) (UnsafeMutableRawPointer?, UInt8) -> Void,
    writeName:
      @escaping @convention(c) (UnsafeMutableRawPointer?, UInt64, UnsafeMutablePointer<UInt8>, Int) -> Int,
    access: WordAccess,
    executive: ExecutiveView? = nil
  ) {
    self.context = context
    self.leaveMachine = leaveMachine
    self.stopAsPanic = stopAsPanic
    self.triggerFault = triggerFault
    self.writeName = writeName
    self.access = access
    self.executive = executive
  }

  func leave(_ status: Shell.ExitStatus) { leaveMachine(context, status.rawValue) }

  func panic() { stopAsPanic(context) }

  func trigger(_ fault: Shell.Fault) { triggerFault(context, fault.rawValue) }

  /// The name and offset of a code address; nil for an unknown one.
  func name(of address: VirtualAddress) -> Line? {
    withUnsafeTemporaryAllocation(of: UInt8.self, capacity: 200) { buffer in
      let count = writeName(context, address.rawValue, buffer.baseAddress.unsafelyUnwrapped, 200)
      guard count > 0 else { return nil }
      var line = Line()
      line.append(bytes: Bytes(start: UnsafePointer(buffer.baseAddress), count: min(count, 200)))
      return line
    }
  }
}
