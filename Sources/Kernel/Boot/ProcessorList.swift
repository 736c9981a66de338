// The processors that ACPI's MADT names, read before the final page tables hide the tables that it is in.
//
// A machine whose tables are not to be believed runs on the processor that it booted on.

import ACPI
import CPlatform
import MemoryPrimitives

struct ProcessorList {
  /// Physical address of the local interrupt controllers: where they are after reset, if nobody says otherwise.
  private(set) var controller = PhysicalAddress(0xfee0_0000)
  /// Why the list may be short.
  private(set) var flaw: ACPIError?
  private var identities: InlineArray<64, UInt32> = .init(repeating: 0)
  private var count = 0

  /// The stub's direct map ends here.
  private static var reach: ByteCount { .gibibytes(4) }

  init(_ information: UnsafeMutablePointer<cp_boot_information>) {
    do throws(ACPIError) {
      let root = PhysicalAddress(information.pointee.acpi_root)
      let tables = try ACPITables(
        root: root == PhysicalAddress(0)
          ? try ACPITables.findRoot(reach: Self.reach, map: Executive.directMap) : root,
        reach: Self.reach, map: Executive.directMap)
      let processors = try MADT(tables)
      controller = processors.localController
      flaw = processors.flaw
      processors.forEachProcessor { processor in
        guard processor.state == .enabled else { return }
        // What an xAPIC can't be told by, or there is no room for.
        guard processor.identity.addressing == .xAPIC, count < Int(CP_PROCESSORS) else {
          Processors.leftOut += 1
          return
        }
        identities[count] = processor.identity.rawValue
        count += 1
      }
    } catch {
      flaw = error
    }
    Processors.named = max(1, count)
  }

  /// Calls `body` with all but the one that is `identity`.
  func withOthers(than identity: UInt32, _ body: (UnsafeBufferPointer<UInt32>) -> Void) {
    var others = InlineArray<64, UInt32>(repeating: 0)
    var left = 0
    for i in 0..<count where identities[i] != identity {
      others[left] = identities[i]
      left += 1
    }
    withUnsafePointer(to: &others) {
      body(UnsafeBufferPointer(start: UnsafeRawPointer($0).assumingMemoryBound(to: UInt32.self), count: left))
    }
  }
}
