// A directory appears complete or not at all.
#include "examples/pythia/io/atomic_directory.hpp"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/support/expect_error.hpp"
#include "tests/support/temp_dir.hpp"

namespace {

namespace fs = std::filesystem;
using pythia::AtomicDirectory;
using test_support::expect_error;
using test_support::read_file;
using test_support::TempDir;
using test_support::write_file;

class AtomicDirectoryTest : public ::testing::Test {
 protected:
  fs::path out() const { return root_.path() / "out"; }
  std::size_t entries() const {
    return static_cast<std::size_t>(
        std::distance(fs::directory_iterator(root_.path()), fs::directory_iterator()));
  }
  TempDir root_;
};

TEST_F(AtomicDirectoryTest, AppearsOnCommit) {
  AtomicDirectory directory(out());
  write_file(directory.path() / "a", "content");
  fs::create_directory(directory.path() / "sub");
  write_file(directory.path() / "sub" / "b", "more");
  EXPECT_FALSE(fs::exists(out()));
  directory.commit();
  EXPECT_EQ(read_file(out() / "a"), "content");
  EXPECT_EQ(read_file(out() / "sub" / "b"), "more");
  EXPECT_EQ(entries(), 1u) << "nothing else is left";
}

TEST_F(AtomicDirectoryTest, LeavesNothingWithoutCommit) {
  {
    AtomicDirectory directory(out());
    write_file(directory.path() / "a", "content");
  }
  EXPECT_EQ(entries(), 0u);
}

TEST_F(AtomicDirectoryTest, AcceptsAnEmptyDirectoryATrailingSlashAndMissingParents) {
  fs::create_directory(out());
  AtomicDirectory(out().string() + "/").commit();
  EXPECT_TRUE(fs::is_empty(out()));
  EXPECT_EQ(entries(), 1u);
  AtomicDirectory nested(out() / "x" / "y");
  nested.commit();
  EXPECT_TRUE(fs::is_directory(out() / "x" / "y"));
}

TEST_F(AtomicDirectoryTest, RefusesToReplace) {
  const std::string expected = "output: expected a new or empty directory";
  const auto make = [&] { AtomicDirectory directory(out()); };
  write_file(out(), "a file");
  expect_error(make, {out().string(), expected, "something else"});
  EXPECT_EQ(read_file(out()), "a file");
  fs::remove(out());
  fs::create_symlink("gone", out());
  expect_error(make, {out().string(), expected, "something else"});
  fs::remove(out());
  fs::create_directory(out());
  write_file(out() / "keep", "me");
  expect_error(make, {out().string(), expected, "one with files in it"});
  EXPECT_EQ(read_file(out() / "keep"), "me");
  EXPECT_EQ(entries(), 1u);
  expect_error([] { AtomicDirectory directory(""); }, {"output: expected a directory name"});
}

TEST_F(AtomicDirectoryTest, NoticesFilesThatAppearBeforeCommit) {
  {
    AtomicDirectory directory(out());
    fs::create_directory(out());
    write_file(out() / "keep", "me");
    expect_error([&] { directory.commit(); }, {out().string(), "cannot create", "not empty"});
  }
  EXPECT_EQ(read_file(out() / "keep"), "me");
  EXPECT_EQ(entries(), 1u) << "the temporary directory is gone";
}

TEST_F(AtomicDirectoryTest, ReportsWhereItCannotWrite) {
  write_file(root_.path() / "file", "");
  expect_error([&] { AtomicDirectory directory(root_.path() / "file" / "out"); }, {"file"});
  expect_error([&] { AtomicDirectory directory("/proc/nothing/out"); },
               {"/proc/nothing", "cannot"});
  expect_error([&] { AtomicDirectory directory(root_.path() / std::string(300, 'x')); },
               {"cannot", "name too long"});
}

TEST_F(AtomicDirectoryTest, IsNotBlockedByAKilledRun) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    AtomicDirectory directory(out());
    write_file(directory.path() / "half", "written");
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_FALSE(fs::exists(out()));
  ASSERT_EQ(entries(), 1u);
  EXPECT_EQ(
      fs::directory_iterator(root_.path())->path().filename().string().rfind("out.incomplete-", 0),
      0u);

  // A later run, even one with the same process id, goes its own way.
  fs::create_directory(out().string() + ".incomplete-" + std::to_string(::getpid()));
  AtomicDirectory directory(out());
  write_file(directory.path() / "whole", "written");
  directory.commit();
  EXPECT_TRUE(fs::exists(out() / "whole"));
  EXPECT_FALSE(fs::exists(out() / "half"));
}

}  // namespace
