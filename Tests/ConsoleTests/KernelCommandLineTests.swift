import MemoryPrimitives
import XCTest

@testable import Console

final class KernelCommandLineTests: XCTestCase {
  func commands(_ line: String) -> [String] {
    var found: [String] = []
    bytes(line) {
      KernelCommandLine($0).forEachCommand {
        found.append(String(decoding: $0, as: UTF8.self))
        return true
      }
    }
    return found
  }

  func testTheLineAsksForASize() {
    func size(_ line: String) -> String {
      bytes(line) {
        switch KernelCommandLine($0).size(of: "swap.ramdisk") {
        case .none: return "none"
        case .size(let size): return "\(size.rawValue)"
        case .unreadable(let words): return "! \(words)"
        }
      }
    }
    func switching(_ line: String) -> KernelCommandLine.AskedSwitch {
      bytes(line) { KernelCommandLine($0).switching(of: "vm.first_64k") }
    }
    XCTAssertEqual(switching("run=\"sysctl vm.first_64k=on\""), .none)
    XCTAssertEqual(switching("vm.first_64k=off x 'vm.first_64k=on'"), .on)
    XCTAssertEqual(switching("vm.first_64k=1 vm.first_64k=0"), .off)
    for line in ["vm.first_64k", "vm.first_64k=", "vm.first_64k=maybe"] {
      XCTAssertEqual(switching(line), .unreadable, line)
    }
    XCTAssertEqual(size(""), "none")
    XCTAssertEqual(size("run=\"sysctl swap.ramdisk=3\" swap.ramdisks=4 wap.ramdisk=5"), "none")
    XCTAssertEqual(size("run=memmap swap.ramdisk=64M color=0"), "67108864")
    XCTAssertEqual(size("'swap.ramdisk=3 GiB'"), "3221225472")
    XCTAssertEqual(size("swap.ramdisk=1M swap.ramdisk=4096"), "4096")
    XCTAssertEqual(size("swap.ramdisk=0"), "0")
    XCTAssertTrue(size("swap.ramdisk").hasPrefix("! a number is missing"))
    XCTAssertTrue(size("swap.ramdisk=").hasPrefix("! a number is missing"))
    XCTAssertTrue(size("swap.ramdisk=-4").hasPrefix("! no number"))
    XCTAssertTrue(size("swap.ramdisk=12x").hasPrefix("! no unit"))
    XCTAssertTrue(size("swap.ramdisk=99999999999999999999").hasPrefix("! too large"))
    XCTAssertTrue(size("swap.ramdisk=99999999T").hasPrefix("! too large"))
  }

  func testTheCommandLinesOfBothLoadersMeanTheSame() {
    let expected = ["memmap", "sysctl vm.contig"]
    XCTAssertEqual(commands("run=\"memmap; sysctl vm.contig\""), expected)
    XCTAssertEqual(commands("color=0 \"run=memmap; sysctl vm.contig\" x=1"), expected)
    XCTAssertEqual(commands("run=memmap;frames"), ["memmap", "frames"])
    XCTAssertEqual(commands("run='memmap;; frames ;'"), ["memmap", "frames"])
    XCTAssertEqual(commands("\"run=whatis \\\"frame 3\\\"; map\""), ["whatis \"frame 3\"", "map"])
    XCTAssertEqual(commands("run=\"\""), [])
    XCTAssertEqual(commands("verbose"), [])
  }

  func testASemicolonInQuotesEndsNoCommand() {
    XCTAssertEqual(commands("run=\"watch 'frames; map'; buddy\""), ["watch 'frames; map'", "buddy"])
  }

  func testTheKernelCommandLineIsSplitIntoWords() {
    var found: [String] = []
    bytes("  vm.x=3 color=0 flag") { line in
      let line = KernelCommandLine(line)
      line.forEachWord { name, value in
        found.append(
          String(decoding: name, as: UTF8.self) + ":"
            + (value.map { String(decoding: $0, as: UTF8.self) } ?? "-"))
      }
      XCTAssertFalse(line.wantsColor)
      XCTAssertFalse(line.hasRun)
    }
    XCTAssertEqual(found, ["vm.x:3", "color:0", "flag:-"])
    XCTAssertTrue(bytes("run=\"\"") { KernelCommandLine($0).hasRun })
    // Nothing of a long script is lost.
    let script = String(repeating: "help; ", count: 300) + "frames"
    var commands: [String] = []
    bytes("run=\"\(script)\"") {
      KernelCommandLine($0).forEachCommand {
        commands.append(String(decoding: $0, as: UTF8.self))
        return true
      }
    }
    XCTAssertEqual(commands.count, 301)
    XCTAssertEqual(commands.last, "frames")
  }
}
