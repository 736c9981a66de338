import MemoryPrimitives
import XCTest

@testable import Console

final class FiguresTests: XCTestCase {
  func size(_ text: String) throws -> UInt64 { try bytes(text) { try Figures.size($0).rawValue } }

  func testSizesInEverySpellingThatIsPrinted() throws {
    for (typed, expected) in [
      ("0", 0), ("4096", 4096), ("1_000", 1000), ("1,000,000", 1_000_000), ("0x10_0000", 1 << 20),
      ("2M", 2 << 20), ("2MiB", 2 << 20), ("2 MiB", 2 << 20), ("3k", 3 << 10), ("1g", 1 << 30),
      ("16T", 16 << 40),
      ("12B", 12), ("16777215T", 16_777_215 << 40),
    ] as [(String, UInt64)] {
      XCTAssertEqual(try size(typed), expected, typed)
    }
  }

  func testWhatIsNoSizeSaysWhereAndWhy() {
    for (typed, reason, at) in [
      ("", .empty, 0), ("M", .notADigit, 0), ("2X", .unknownUnit, 1), ("2MB", .unknownUnit, 1),
      ("3.5M", .notADigit, 1), ("18446744073709551616", .tooLarge, 19), ("16777216T", .tooLarge, 0),
      ("0x", .empty, 2), ("0xg", .notADigit, 2), ("2Mx", .unknownUnit, 1), ("_1", .notADigit, 0),
    ] as [(String, FigureError.Reason, Int)] {
      XCTAssertThrowsError(try size(typed), typed) {
        XCTAssertEqual($0 as? FigureError, FigureError(reason: reason, at: at), typed)
      }
    }
  }

  func testAddressesAndRanges() throws {
    XCTAssertEqual(try bytes("0xffff_8000_0fc9_6c40") { try Figures.address($0) }, 0xffff_8000_0fc9_6c40)
    XCTAssertEqual(try bytes("ffff_8000_0fc9_6c40") { try Figures.address($0) }, 0xffff_8000_0fc9_6c40)
    let (start, length) = try bytes("0x0fc0_0000+2M") { try Figures.range($0, length: nil) }
    XCTAssertEqual(start, 0xfc0_0000)
    XCTAssertEqual(length, .mebibytes(2))
    for (typed, reason, at) in [
      ("0x10+", .empty, 5), ("0x10+0", .emptyRange, 5), ("0x10", .noPlus, 4),
      ("0xffff_ffff_ffff_ffff+2", .tooLarge, 22), ("0x10+2Q", .unknownUnit, 6),
    ] as [(String, FigureError.Reason, Int)] {
      XCTAssertThrowsError(try bytes(typed) { try Figures.range($0, length: nil) }, typed) {
        XCTAssertEqual($0 as? FigureError, FigureError(reason: reason, at: at), typed)
      }
    }
  }

  func testSlipsAreCountedAsTheHandMakesThem() {
    func count(_ a: String, _ b: String) -> Int { bytes(a) { a in bytes(b) { slips(a, $0, limit: 9) } } }
    XCTAssertEqual(count("frame", "frames"), 1)
    XCTAssertEqual(count("fraems", "frames"), 1)
    XCTAssertEqual(count("", "map"), 3)
    XCTAssertEqual(count("buddy", "buddy"), 0)
    XCTAssertEqual(count("kmem", "vmem"), 1)
  }
}

final class WordsTests: XCTestCase {
  func split(_ line: String) -> [String] {
    var words = Words()
    bytes(line) { words.split($0) }
    XCTAssertEqual(words.problem, .none)
    return (0..<words.count).map { word in
      String(decoding: (0..<words.length(word)).map { words.text[words.begin(word) + $0] }, as: UTF8.self)
    }
  }

  func testBlanksPartWordsAndQuotesKeepThem() {
    XCTAssertEqual(split("  why  2M   align=2M "), ["why", "2M", "align=2M"])
    XCTAssertEqual(split("a \"b c\" 'd \"e' f\\ g"), ["a", "b c", "d \"e", "f g"])
    XCTAssertEqual(split("x=\"1 2\" \"\""), ["x=1 2", ""])
    XCTAssertEqual(split(""), [])
  }

  func testWhatCannotBeSplitIsSaidWhereItStands() {
    var words = Words()
    bytes("whatis \"0x10") { words.split($0) }
    XCTAssertEqual(words.problem, .openQuote)
    XCTAssertEqual(words.problemColumn, 7)
    bytes(String(repeating: "a ", count: 30)) { words.split($0) }
    XCTAssertEqual(words.problem, .tooManyWords)
    bytes(String(repeating: "a", count: 600)) { words.split($0) }
    XCTAssertEqual(words.problem, .tooLong)
  }
}

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

  func testBothLoadersMeanTheSame() {
    let expected = ["memmap", "sysctl vm.contig"]
    XCTAssertEqual(commands("run=\"memmap; sysctl vm.contig\""), expected)
    XCTAssertEqual(commands("color=0 \"run=memmap; sysctl vm.contig\" x=1"), expected)
    XCTAssertEqual(commands("run=memmap;frames"), ["memmap", "frames"])
    XCTAssertEqual(commands("run='memmap;; frames ;'"), ["memmap", "frames"])
    XCTAssertEqual(commands("\"run=whatis \\\"frame 3\\\"; map\""), ["whatis \"frame 3\"", "map"])
    XCTAssertEqual(commands("run=\"\""), [])
    XCTAssertEqual(commands("verbose"), [])
  }

  func testASemicolonInQuotesStays() {
    XCTAssertEqual(commands("run=\"watch 'frames; map'; buddy\""), ["watch 'frames; map'", "buddy"])
  }

  func testWords() {
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
